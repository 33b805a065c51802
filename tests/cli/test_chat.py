"""`alignez chat` as a conversation: from a file, and on a terminal."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app

runner = CliRunner()
COMMAND = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")


def talk(url: str, lines: str, *options: str) -> Any:
    return runner.invoke(app, ["chat", *options, "--url", url, "--key", "good"], input=lines)


def bodies(seen: list[Any]) -> list[dict[str, Any]]:
    return [body for _, path, body in seen if path == "/v1/chat/completions"]


def test_every_line_of_a_file_is_a_question_of_one_conversation(server: Any) -> None:
    url, seen = server
    result = talk(url, "Hi\n\nWhy?\n")
    assert (result.exit_code, result.stdout) == (0, "Hello\nHello\n")
    assert [turn["content"] for turn in bodies(seen)[-1]["messages"]] == ["Hi", "Hello", "Why?"]


def test_commands_change_the_next_answer(server: Any) -> None:
    url, seen = server
    lines = (
        "Hi\n/profile cheerful#1\n/strength 0.5\n/system Be brief.\n/reset\nWhy?\n/profile\n/system\nAnd?\n/quit\nNo\n"
    )
    result = talk(url, lines)
    assert result.exit_code == 0, result.output
    first, second, third = bodies(seen)
    assert "profile" not in first
    assert second["profile"] == {"name": "cheerful", "version": 1, "strength": 0.5}
    assert [turn["content"] for turn in second["messages"]] == ["Be brief.", "Why?"]
    assert "profile" not in third
    assert [turn["role"] for turn in third["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/strength 1", "name one with /profile"),
        ("/profile cheerful\n/strength much", "write a number from 0 to 8"),
        ("/profile cheerful\n/strength nan", "write a number from 0 to 8"),
        ("/profile cheerful\n/strength 9", "write a number from 0 to 8"),
        ("/sytem x", "/sytem is not a command: /help lists them"),
        ("/profile chearful", "did you mean cheerful?"),
        ("/profile cheerful:nope", "no /v1/models/base%40cheerful%3Anope"),
    ],
)
def test_a_wrong_command_ends_a_file_with_one_line(server: Any, line: str, says: str) -> None:
    url, seen = server
    result = talk(url, f"{line}\nWhy?\n")
    assert result.exit_code == 1
    assert says in result.stderr.splitlines()[-1]
    assert not bodies(seen)


def test_help_lists_every_command(server: Any) -> None:
    url, _ = server
    result = talk(url, "/help\n")
    for name in ("/profile", "/strength", "/system", "/reset", "/quit"):
        assert name in result.output


def test_a_strength_without_a_profile_is_refused(server: Any) -> None:
    url, seen = server
    result = talk(url, "", "-m", "Hi", "--strength", "0.5")
    assert result.exit_code == 2
    assert result.stderr == "error: --strength is the dose of a profile: name one with --profile\n"
    assert not seen


#: Ctrl-C reaches the foreground group of the terminal that controls the session. A background job starts with SIGINT
#: ignored, and so would its children.
_ON_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


#: Without output for this long, keys are pressed again.
_SILENCE_S = 5.0


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self._terminal, theirs = os.openpty()
        command = [sys.executable, "-c", _ON_TERMINAL, sys.executable, "-m", "cli.main", *words]
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        os.close(theirs)
        self._read = b""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def until(self, text: str, press: str = "") -> str:
        """The output up to `text`, which ends it.

        Args:
            press: keys that bring it, pressed again while nothing comes: readline misses a Ctrl-C that arrives in the
                moment before it waits.
        """
        self.type(press)
        deadline = time.monotonic() + 90
        while text.encode() not in (plain := COMMAND.sub(b"", self._read)):
            if select.select([self._terminal], [], [], _SILENCE_S)[0]:
                self._read += os.read(self._terminal, 1024)
            else:
                assert time.monotonic() < deadline, plain
                self.type(press)
        before, found, rest = plain.partition(text.encode())
        self._read = rest
        return (before + found).decode()

    def status(self, press: str) -> int:
        """The exit status that `press` brings."""
        for _ in range(18):
            self.type(press)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(_SILENCE_S)
        raise AssertionError("it goes on")

    def close(self) -> None:
        os.close(self._terminal)
        self._process.kill()
        self._process.wait()


@pytest.fixture
def terminal(server: Any, tmp_path: Path) -> Iterator[Terminal]:
    url, _ = server
    environment = {"ALIGNEZ_URL": url, "ALIGNEZ_KEY": "good", "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
    command = Terminal(["chat", "--user", "slow"], environment)
    yield command
    command.close()


def test_on_a_terminal_ctrl_c_ends_an_answer_then_leaves(terminal: Terminal, tmp_path: Path) -> None:
    terminal.until("> ")
    terminal.type("Hi\n")
    terminal.until("Hel")
    terminal.until("(ended)", press="\x03")
    terminal.until("> ")
    terminal.type("/nothing\n")
    terminal.until("error: /nothing is not a command: /help lists them")
    terminal.until("> ")
    terminal.type("\x1b[A\x1b[A\n")  # up, up: the first line again
    terminal.until("Hel")
    terminal.until("> ", press="\x03")
    assert terminal.status(press="\x03") == 0
    history = tmp_path / "alignez" / "chat_history"
    assert history.read_text().splitlines() == ["Hi", "/nothing", "Hi"]
    assert history.stat().st_mode & 0o077 == 0
