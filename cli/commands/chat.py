"""`alignez chat`: a conversation with the model, personalised or not."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.client import ApiError, Client, chat_path, profile_choice, profile_path
from cli.errors import CliError, usage_error
from cli.shell import Shell, err, out, print_json, shell_of

MaxTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
TemperatureOption = Annotated[float, typer.Option(min=0.0, max=2.0, help="0: always the most likely token.")]

_MAX_STRENGTH = 8.0
_HISTORY_LINES = 1000
_HELP = """\
/profile NAME   answer with this profile (NAME:ALIAS, NAME#VERSION); /profile alone: the bare model
/strength X     dose of the profile, 0 to 8; /strength alone: the version's own
/system TEXT    system message; /system alone: none
/reset          delete the conversation so far
/quit           leave (so does Ctrl-D)
Ctrl-C ends an answer; at the prompt it leaves."""


def chat(
    context: typer.Context,
    profile: Annotated[
        str | None, typer.Option(help="Profile, by name; name:alias or name#version. The bare model by default.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask one question and end.")] = None,
    user: Annotated[str | None, typer.Option(help="End user whose assigned profile applies.")] = None,
    strength: Annotated[
        float | None, typer.Option(min=0.0, max=_MAX_STRENGTH, help="Dose of the profile; needs --profile.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: MaxTokensOption = 96,
    temperature: TemperatureOption = 0.8,
    seed: Annotated[int | None, typer.Option(help="Makes the answer repeatable.")] = None,
) -> None:
    """Chat with the model, or with a profile. In a conversation, /help lists the commands.

    If stdin is not a terminal, each of its lines is one question of the conversation.

    Example: alignez chat --profile cheerful -m "How do I start hiking?"
    """
    if strength is not None and profile is None:
        raise usage_error("--strength is the dose of a profile: name one with --profile")
    settings: dict[str, Any] = {"model": "base", "max_tokens": max_tokens, "temperature": temperature}
    if seed is not None:
        settings["seed"] = seed
    shell = shell_of(context)
    if shell.as_json and message is None:
        raise usage_error("chat --json answers one question: pass it with --message")
    with shell.connect() as client:
        talk = Conversation(client, settings, user, profile, strength, system)
        if message is not None:
            talk.answer_once(shell, message)
            return
        with _line_editing():
            for line in _lines():
                if not _run(talk, line):
                    return


@dataclass
class Conversation:
    """The turns so far, and the settings of the next answer.

    Args:
        client: client of the server. settings: sampling settings. user: end user whose assigned profile applies.
        profile, strength, system: may change between turns.
    """

    client: Client
    settings: dict[str, Any]
    user: str | None
    profile: str | None
    strength: float | None
    system: str | None
    turns: list[dict[str, str]] = field(default_factory=list)

    def answer_once(self, shell: Shell, question: str) -> None:
        """Prints the answer to one question, streamed; with `--json`, the server's whole response."""
        self.turns = [{"role": "user", "content": question}]
        if shell.as_json:
            print_json(self.client.call("POST", chat_path(self.user), self._body()))
        else:
            self._stream()

    def answer(self, question: str) -> None:
        """Prints the next answer of the conversation. Ctrl-C ends the answer; its printed part becomes the turn.

        Drops the oldest turns if the model's context is too short for all of them.

        Raises: CliError: no answer; the question does not become a turn.
        """
        self.turns.append({"role": "user", "content": question})
        try:
            self.turns.append({"role": "assistant", "content": self._stream_shortening()})
        except CliError:
            self.turns.pop()
            raise

    def _stream_shortening(self) -> str:
        while True:
            try:
                return self._stream()
            except ApiError as error:
                if error.code != "context_length_exceeded" or len(self.turns) < 3:
                    raise
                del self.turns[:2]
                err.print("(dropped the oldest turn: the conversation exceeds the model's context)", style="dim")

    def _body(self) -> dict[str, Any]:
        opening = [{"role": "system", "content": self.system}] if self.system else []
        body = {**self.settings, "messages": [*opening, *self.turns]}
        if self.profile is not None:
            body["profile"] = profile_choice(self.profile, self.strength)
        return body

    def _stream(self) -> str:
        """Prints the answer while it arrives; returns its text."""
        pieces: list[str] = []
        applied: dict[str, Any] = {}
        try:
            with contextlib.closing(self.client.chat(self._body(), self.user)) as chunks:
                for chunk in chunks:
                    for choice in chunk.get("choices", []):
                        piece = choice.get("delta", {}).get("content") or ""
                        pieces.append(piece)
                        out.print(piece, end="", markup=False)
                    applied = chunk.get("alignez") or applied
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            err.print(" (ended)", style="dim")
            return "".join(pieces)
        out.print()
        if applied.get("reason") == "no_default_version":
            err.print(f"(the bare model: profile {applied['profile']} has no default version)", style="dim")
        return "".join(pieces)


def _run(talk: Conversation, line: str) -> bool:
    """Handles one line of a conversation; False ends it. On a terminal, an error does not end the conversation."""
    if line in ("/quit", "/exit"):
        return False
    name, _, argument = line.partition(" ")
    try:
        if not line.startswith("/"):
            talk.answer(line)
        elif name in _COMMANDS:
            err.print(_COMMANDS[name](talk, argument.strip()), style="dim", markup=False)
        else:
            raise CliError(f"{name} is not a command: /help lists them")
    except CliError as error:
        if not sys.stdin.isatty():
            raise
        err.print(f"error: {error}", style="red", markup=False)
    return True


def _set_profile(talk: Conversation, argument: str) -> str:
    if not argument:
        talk.profile = talk.strength = None
        return "the bare model answers"
    # A name, alias or version that cannot answer changes nothing.
    talk.client.call("GET", profile_path(profile_choice(argument)["name"]))
    talk.client.call("GET", f"/v1/models/{quote(f'base@{argument}', safe='')}")
    talk.profile = argument
    return f"{argument} answers"


def _set_strength(talk: Conversation, argument: str) -> str:
    if not argument:
        talk.strength = None
        return "the version's own strength"
    if talk.profile is None:
        raise CliError("/strength is the dose of a profile: name one with /profile")
    try:
        value = float(argument)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MAX_STRENGTH:
        raise CliError(f"/strength {argument}: write a number from 0 to {_MAX_STRENGTH:g}")
    talk.strength = value
    return f"strength {value:g}"


def _set_system(talk: Conversation, argument: str) -> str:
    talk.system = argument or None
    return "system message set" if argument else "no system message"


def _reset(talk: Conversation, argument: str) -> str:
    talk.turns.clear()
    return "the conversation was deleted"


_COMMANDS: dict[str, Callable[[Conversation, str], str]] = {
    "/help": lambda talk, argument: _HELP,
    "/profile": _set_profile,
    "/strength": _set_strength,
    "/system": _set_system,
    "/reset": _reset,
}


def _lines() -> Iterator[str]:
    """The lines of stdin, until its end or Ctrl-C at the prompt."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            if prompt:
                out.print()
            return
        if line:
            yield line


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """Arrow keys and a persistent history, if Python has readline and stdin is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    try:
        import readline
    except ImportError:
        yield
        return
    home = os.environ.get("XDG_STATE_HOME")
    history = (Path(home) if home else Path.home() / ".local" / "state") / "alignez" / "chat_history"
    readline.set_history_length(_HISTORY_LINES)
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(mode=0o600)
            readline.write_history_file(history)
