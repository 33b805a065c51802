"""What scripts rely on: one JSON document on stdout, errors as JSON on stderr, exit statuses, quick start."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.client import Client
from cli.main import app
from tests.cli.fake_server import JOB, PROFILE

runner = CliRunner()
COMMANDS = (
    ["chat", "-m", "Hi"],
    ["compare", "Why?", "--profile", "cheerful"],
    ["usage", "--since", "2026-11-01"],
    ["audit"],
    ["profiles", "create", "cheerful"],
    ["profiles", "refit", "dull"],
    ["profiles", "list"],
    ["profiles", "show", "cheerful"],
    ["profiles", "versions", "cheerful"],
    ["profiles", "rollback", "cheerful"],
    ["profiles", "archive", "cheerful", "1"],
    ["profiles", "evaluate", "cheerful"],
    ["profiles", "report", "cheerful"],
    ["profiles", "pairs", "cheerful"],
    ["profiles", "delete", "cheerful", "--yes"],
    ["aliases", "list", "cheerful"],
    ["aliases", "set", "cheerful", "beta", "2"],
    ["aliases", "canary", "cheerful", "2"],
    ["aliases", "remove", "cheerful", "beta"],
    ["users", "assign", "ada", "cheerful"],
    ["users", "show", "ada"],
    ["users", "unassign", "ada"],
    ["jobs", "watch", "j-1"],
    ["jobs", "list"],
    ["jobs", "show", "j-1"],
    ["jobs", "cancel", "j-1"],
    ["keys", "create", "app"],
    ["keys", "list"],
    ["keys", "revoke", "k-1"],
    ["keys", "rotate", "k-1"],
)
#: Their answers need a stack, a database or a broker; `promote` is refused by the fake server, below.
OTHERS = {
    "up",
    "env",
    "demo",
    "doctor",
    "models",
    "migrate",
    "api",
    "worker",
    "relay",
    "dead-letters",
    "profiles promote",
}


def leaves(group: Any, path: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{path}{name} ")
        else:
            yield f"{path}{name}"


def test_every_command_that_talks_to_a_server_is_tried_below() -> None:
    tried = {" ".join(words[: 1 if words[0] in ("chat", "compare", "usage", "audit") else 2]) for words in COMMANDS}
    named = {path for path in leaves(typer.main.get_command(app)) if not {path, path.split()[0]} & OTHERS}
    assert named == tried


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_json_is_one_document_alone_on_stdout(server: Any, words: list[str]) -> None:
    url, _ = server
    after = runner.invoke(app, [*words, "--json", "--url", url, "--key", "good"])
    assert after.exit_code == 0, after.output
    json.loads(after.stdout)
    before = runner.invoke(app, ["--json", "--url", url, "--key", "good", *words])
    assert before.stdout == after.stdout


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_the_same_for_people_is_lines(server: Any, words: list[str]) -> None:
    url, _ = server
    result = runner.invoke(app, words, env={"ALIGNEZ_URL": url, "ALIGNEZ_KEY": "good"})
    assert result.exit_code == 0, result.output
    assert result.output.strip()


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (["profiles", "show", "chearful"], 1, "not_found"),
        (["profiles", "promote", "cheerful", "2"], 1, "version_not_ready"),
        (["profiles", "promote", "dull", "2"], 1, "version_weak"),
        (["profiles", "evaluate", "dull", "--version", "2"], 1, "job_failed"),
        (["profiles", "list", "--key", "bad"], 1, "unauthenticated"),
        (["profiles", "list", "--url", "http://127.0.0.1:9"], 1, "unreachable"),
        (["profiles", "create", "x", "--fit", "neighbors"], 2, "usage_error"),
        (["profiles", "delete", "cheerful"], 2, "usage_error"),
        (["chat"], 2, "usage_error"),
        (["aliases", "set", "cheerful", "beta", "1=x"], 2, "usage_error"),
        (["aliases", "set", "cheerful", "beta", "1=nan", "2=1"], 2, "usage_error"),
        (["profiles", "create", "x", "--fit", "strength=NaN"], 2, "usage_error"),
        (["profiles", "create", "x", "--fit", "strength=1e999"], 2, "usage_error"),
        (["keys", "create", "k", "--expires-days", "1e12"], 2, "usage_error"),
        (["profiles", "lst"], 2, "usage_error"),
        (["profiles", "show"], 2, "usage_error"),
        (["profiles", "list", "--bogus"], 2, "usage_error"),
        (["profiles", "promote", "dull", "two"], 2, "usage_error"),
    ],
)
def test_errors_are_json_on_stderr_with_a_status(server: Any, words: list[str], status: int, code: str) -> None:
    url, _ = server
    result = runner.invoke(app, [*words, "--json"], env={"ALIGNEZ_URL": url, "ALIGNEZ_KEY": "good"})
    assert (result.exit_code, result.stdout) == (status, "")
    error = json.loads(result.stderr.splitlines()[-1])["error"]
    assert error["code"] == code
    assert set(error) == {"code", "message", "details", "request_id"}


@pytest.mark.parametrize(
    ("words", "variable", "value"),
    [
        (["migrate"], "ALIGNEZ_DATABASE_URL", "mysql://u:secret@h/d"),
        (["migrate", "--autogenerate", "x"], "ALIGNEZ_DATABASE_URL", "mysql://u:secret@h/d"),
        (["keys", "create", "k", "--database"], "ALIGNEZ_DATABASE_URL", "mysql://u:secret@h/d"),
        (["dead-letters", "list"], "ALIGNEZ_BROKER_URL", "http://u:secret@h"),
        (["dead-letters", "list"], "ALIGNEZ_WORKER_JOB_TIME_LIMIT_S", "soon"),
        (["relay"], "ALIGNEZ_BROKER_URL", "http://u:secret@h"),
        (["worker"], "ALIGNEZ_WORKER_JOB_TIME_LIMIT_S", "soon"),
        (["api"], "ALIGNEZ_API_PORT", "x"),
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_a_wrong_setting_is_one_line_in_every_command(
    words: list[str], variable: str, value: str, as_json: bool
) -> None:
    result = runner.invoke(app, [*words, *(["--json"] if as_json else [])], env={variable: value})
    assert (result.exit_code, result.stdout) == (1, "")
    assert "secret" not in result.stderr
    if as_json:
        error = json.loads(result.stderr)["error"]
        assert error["code"] == "wrong_setting"
        assert error["message"].startswith(f"{variable}: ")
    else:
        assert result.stderr.startswith(f"error: {variable}: ")


def test_ctrl_c_before_a_fits_answer_says_that_it_may_run(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    url, _ = server
    monkeypatch.setattr("httpx.Client.request", interrupted)
    for words in (["profiles", "create", "x"], ["profiles", "refit", "dull"], ["profiles", "evaluate", "dull"]):
        result = runner.invoke(app, [*words, "--json", "--url", url, "--key", "good"])
        if words[1] == "create":
            assert json.loads(result.stderr)["error"]["code"] == "interrupted"
            assert "jobs list" in result.stderr
        assert result.exit_code == 130


def test_a_servers_refusal_keeps_its_details_and_request_id(server: Any) -> None:
    url, _ = server
    result = runner.invoke(app, ["profiles", "show", "chearful", "--json", "--url", url, "--key", "good"])
    error = json.loads(result.stderr)["error"]
    assert error["details"] == {"kind": "profile", "ref": "chearful"}
    assert error["request_id"] == "req_1"


def test_an_option_after_the_command_wins_over_the_roots_and_the_environments(server: Any) -> None:
    url, _ = server
    wrong = {"ALIGNEZ_URL": "http://127.0.0.1:9", "ALIGNEZ_KEY": "bad"}
    result = runner.invoke(app, ["--key", "bad", "profiles", "list", "--url", url, "--key", "good"], env=wrong)
    assert result.exit_code == 0, result.output
    between = runner.invoke(app, ["profiles", "--json", "--key", "good", "list"], env={**wrong, "ALIGNEZ_URL": url})
    assert json.loads(between.stdout) == [PROFILE]


def test_the_value_of_an_option_is_no_option(server: Any) -> None:
    url, seen = server
    result = runner.invoke(app, ["chat", "-m", "--json", "--url", url, "--key", "good"])
    assert result.stdout == "Hello\n"
    assert seen[-1][2]["messages"][0]["content"] == "--json"


@pytest.mark.parametrize(
    "words", [["profiles", "create", "cheerful"], ["profiles", "evaluate", "cheerful"], ["jobs", "watch", "j-1"]]
)
def test_ctrl_c_says_that_the_job_goes_on_and_how_to_stop_it(
    server: Any, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(client: Client, job_id: str) -> Iterator[dict[str, Any]]:
        raise KeyboardInterrupt
        yield {}

    monkeypatch.setattr(Client, "job_events", interrupted)
    url, _ = server
    result = runner.invoke(app, [*words, "--url", url, "--key", "good"])
    assert result.exit_code == 130
    (line,) = result.stderr.splitlines()
    for part in ("goes on in the worker", "`alignez jobs watch j-1`", "`alignez jobs cancel j-1`"):
        assert part in line


def test_jobs_are_listed_with_profile_whole_id_stage_and_age(server: Any) -> None:
    url, _ = server
    result = runner.invoke(app, ["jobs", "list", "--url", url, "--key", "good"], env={"COLUMNS": "40"})
    header, row = result.output.splitlines()
    assert header.split() == ["id", "profile", "version", "kind", "status", "stage", "age", "error"]
    assert row.split()[:6] == [JOB["id"], "cheerful", "1", "evaluate", "running", "evaluation"]


def test_a_canary_takes_its_share_from_the_versions_in_use(server: Any) -> None:
    url, seen = server
    result = runner.invoke(
        app, ["aliases", "canary", "cheerful", "2", "--percent", "10", "--url", url, "--key", "good"]
    )
    assert seen[-1] == (
        "PUT",
        "/v1/profiles/cheerful/aliases/default",
        {"weights": {"1": 90.0, "2": 10.0}, "force": False},
    )
    assert result.output == "cheerful:default → version 1 (90%) / 2 (10%)\n"
    alone = runner.invoke(app, ["aliases", "canary", "cheerful", "1", "--url", url, "--key", "good"])
    assert "points to no other version than 1" in alone.stderr


def test_a_comparison_has_the_persona_as_a_prompt_between_bare_and_profile(server: Any) -> None:
    url, seen = server
    words = ["compare", "Why?", "--profile", "cheerful", "--seed", "3", "--json", "--url", url, "--key", "good"]
    columns = json.loads(runner.invoke(app, words).stdout)["columns"]
    assert [(one["name"], one["text"]) for one in columns] == [
        ("base", "Walk."),
        ("prompt", "Hello"),
        ("cheerful", "Yay, walk!"),
    ]
    asked = seen[-1][2]
    assert asked["seed"] == 3
    assert asked["messages"][0]["role"] == "system"
    assert "cheerful" in asked["messages"][0]["content"]


def test_starting_loads_no_heavy_package() -> None:
    heavy = {"torch", "transformers", "fastapi", "sqlalchemy", "celery", "psycopg", "numpy"}
    code = f"import sys, cli.main; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("typed", "offered"), [("al", "aliases"), ("profiles pr", "promote"), ("chat --str", "--strength")]
)
def test_a_shell_completes_commands_and_options(typed: str, offered: str) -> None:
    words = f"alignez {typed}"
    environment = {"_ALIGNEZ_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    result = runner.invoke(app, [], prog_name="alignez", env=environment)
    assert result.output.split() == [offered]
