"""The commands as a person meets them: help everywhere, errors of one line, answers of a server shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import typer
from typer.testing import CliRunner

from alignez_core import fit_run
from cli import job_view
from cli.main import app
from tests.cli.fake_server import JOB, PROFILE, PROOF

runner = CliRunner()


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", sorted(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_has_help_that_says_what_it_does(path: tuple[str, ...]) -> None:
    result = runner.invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    sentences = [line.strip() for line in result.output.splitlines() if line.strip() and "Usage" not in line]
    assert len(sentences[0]) > 12
    if "COMMAND [ARGS]" not in result.output:
        assert re.search(rf"Example: .*alignez {' '.join(path)}\b", result.output)


def test_creating_a_profile_shows_progress_verdict_and_what_to_do_next(server: Any) -> None:
    url, seen = server
    result = runner.invoke(
        app,
        [
            "profiles",
            "create",
            "cheerful",
            "--preferred",
            "cheerful",
            "--fit",
            "neighbors=4",
            "--url",
            url,
            "--key",
            "good",
        ],
    )
    assert result.exit_code == 0, result.output
    assert seen[0] == (
        "POST",
        "/v1/profiles",
        {"name": "cheerful", "persona": {"preferred": "cheerful"}, "fit": {"neighbors": 4}},
    )
    assert "responses        4/4" in result.output
    assert "good (judge self, 32 held-out queries)" in result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "over the bare model +0.78 +0.56 to +0.94 28 1 3" in lines
    assert "over the persona as a prompt +0.31 -0.03 to +0.60 20 2 10" in lines
    assert "chosen: 4 layers, rank 3, λ 1 (largest net win)" in lines
    assert "cost, persona as a prompt: 49 prompt tokens (+18), 22.5 ms with 8 new tokens" in lines
    assert lines[-1] == "try it: alignez chat --profile cheerful"


def test_a_weak_version_says_why_and_how_to_use_it_all_the_same(server: Any) -> None:
    url, _ = server
    result = runner.invoke(app, ["profiles", "refit", "dull", "--url", url, "--key", "good"])
    assert result.exit_code == 0, result.output
    for part in (
        "weak (judge self, 32 held-out queries)",
        "- net win over the bare model is +0.03",
        "judged by self: openai could not be reached",
        "alignez chat --profile dull#2",
        "alignez profiles promote dull 2 --force",
    ):
        assert part in result.output


def test_promoting_a_weak_version_needs_force(server: Any) -> None:
    url, seen = server
    for force in ([], ["--force"]):
        result = runner.invoke(app, ["profiles", "promote", "dull", "2", *force, "--url", url, "--key", "good"])
        assert seen[-1][2] == {"version": 2, "force": bool(force)}
    assert result.exit_code == 1
    assert "version 2 of profile 'dull' is weak" in result.output
    assert "alignez profiles report dull --version 2" in result.output


@pytest.mark.parametrize(
    ("options", "body"),
    [([], {}), (["--version", "1", "--judge", "nano"], {"judge": "nano"}),
     (["--held-out", "8", "--seed", "3"], {"held_out_queries": 8, "seed": 3})],
)  # fmt: skip
def test_an_evaluation_shows_progress_and_verdict(server: Any, options: list[str], body: dict[str, Any]) -> None:
    url, seen = server
    result = runner.invoke(app, ["profiles", "evaluate", "cheerful", *options, "--url", url, "--key", "good"])
    assert result.exit_code == 0, result.output
    assert ("POST", "/v1/profiles/cheerful/versions/1/evaluate", body) in seen
    assert "responses        4/4" in result.output
    assert "+0.56 to +0.94" in result.output


def test_an_evaluation_need_not_be_waited_for(server: Any) -> None:
    url, seen = server
    result = runner.invoke(app, ["profiles", "evaluate", "cheerful", "--no-wait", "--url", url, "--key", "good"])
    assert "alignez jobs watch j-1" in result.output
    assert seen[-1][0] == "POST"


def test_a_report_is_printed_as_text_as_json_or_written_as_a_page(server: Any, tmp_path: Path) -> None:
    url, _ = server
    report = ["profiles", "report", "cheerful", "--url", url, "--key", "good"]
    assert "cheerful, version 1" in runner.invoke(app, report).output
    assert json.loads(runner.invoke(app, [*report, "--json"]).output) == PROOF
    page = tmp_path / "proof.html"
    assert f"wrote {page}" in runner.invoke(app, [*report, "--html", str(page)]).output.replace("\n", "")
    assert page.read_text() == "<!doctype html>/v1/profiles/cheerful/versions/1/report"
    both = runner.invoke(app, [*report, "--html", str(page), "--json"])
    assert json.loads(both.output) == PROOF
    nowhere = runner.invoke(app, [*report, "--html", str(tmp_path / "no" / "p.html")])
    assert (nowhere.exit_code, "cannot be written" in nowhere.output) == (1, True)


def test_without_a_default_the_latest_ready_version_is_meant(server: Any) -> None:
    url, _ = server
    result = runner.invoke(app, ["profiles", "report", "dull", "--url", url, "--key", "good"])
    assert "weak" in result.output
    nothing = runner.invoke(app, ["profiles", "report", "empty", "--url", url, "--key", "good"])
    assert (nothing.exit_code, "no version that is ready" in nothing.output) == (1, True)


def test_the_stages_on_the_terminal_are_the_fits_own() -> None:
    assert job_view.STAGES == fit_run.STAGES


def test_chat_streams_the_answer_of_the_named_profile(server: Any) -> None:
    url, seen = server
    result = runner.invoke(app, ["chat", "-m", "Hi", "--profile", "cheerful#1", "--url", url, "--key", "good"])
    assert result.output == "Hello\n"
    body = seen[-1][2]
    assert body["profile"] == {"name": "cheerful", "version": 1}
    assert body["model"] == "base"


@pytest.mark.parametrize("user", ["ada", "a/b", "a b#1?x=y", "anna@example.org", "Жанна", "../../admin"])
def test_chat_as_an_end_user_takes_any_id_in_one_path_segment(server: Any, user: str) -> None:
    url, seen = server
    runner.invoke(app, ["chat", "-m", "Hi", "--user", user, "--url", url, "--key", "good"])
    assert seen[-1][:2] == ("POST", f"/v1/users/{quote(user, safe='')}/chat/completions")


def test_an_end_user_whose_profile_serves_nobody_yet_is_told(server: Any) -> None:
    url, _ = server
    result = runner.invoke(app, ["chat", "-m", "Hi", "--user", "ben", "--url", url, "--key", "good"])
    assert result.output == "Hi\n(the bare model: profile dull has no default version)\n"


def test_a_job_that_is_no_id_is_asked_for_as_it_was_typed(server: Any) -> None:
    url, seen = server
    result = runner.invoke(app, ["jobs", "cancel", "../profiles", "--url", url, "--key", "good"])
    assert result.exit_code == 1
    assert seen[-1][:2] == ("POST", "/v1/jobs/..%2Fprofiles/cancel")


def test_lists_are_tables_and_json(server: Any) -> None:
    url, _ = server
    table = runner.invoke(app, ["profiles", "list", "--url", url, "--key", "good"])
    assert "cheerful  default → 1" in table.output
    jobs = runner.invoke(app, ["jobs", "list", "--url", url, "--key", "good"], env={"COLUMNS": "40"})
    assert JOB["id"] in jobs.output  # people copy it
    as_json = runner.invoke(app, ["profiles", "list", "--json", "--url", url, "--key", "good"])
    assert json.loads(as_json.output) == [PROFILE]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["profiles", "list", "--key", "bad"], "the key was refused"),
        (["profiles", "show", "nobody", "--key", "good"], "no /v1/profiles/nobody"),
        (["profiles", "promote", "cheerful", "2", "--key", "good"], "version 2 is pending"),
    ],
)
def test_refusals_are_one_line(server: Any, arguments: list[str], says: str) -> None:
    url, _ = server
    result = runner.invoke(app, [*arguments, "--url", url])
    assert result.exit_code == 1
    assert says in result.output
    assert "Traceback" not in result.output


def test_nothing_listening_is_one_line_that_says_how_to_start() -> None:
    result = runner.invoke(app, ["profiles", "list", "--url", "http://127.0.0.1:9", "--key", "k"])
    assert result.exit_code == 1
    assert "alignez up" in result.output
