"""Results survive an interruption at any byte; rows of other settings are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignez_core.fit_run import FitEvent, TextChunk
from research.figures import table
from research.runner import Results, Texts, parser, settings_of


def test_finished_rows_are_taken_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "some" / "results.json"
    first = Results(path, {"model": "m"}, total=2)
    assert first.row({"seed": 0}, lambda: {"net": 0.5})["net"] == 0.5
    again = Results(path, {"model": "m"}, total=2)
    assert again.row({"seed": 0}, lambda: pytest.fail("the row is stored"))["net"] == 0.5
    again.row({"seed": 1}, lambda: {"net": 1.0})
    assert [row["seed"] for row in json.loads(path.read_text())["rows"]] == [0, 1]
    assert not list(path.parent.glob("*.part"))


def test_a_row_is_read_back_as_it_was_made(tmp_path: Path) -> None:
    made = Results(tmp_path / "r.json", {}).row({"slice": "a"}, lambda: {"layers": (1, 2), "text": "“µ”"})
    assert Results(tmp_path / "r.json", {}).find({"slice": "a"}) == made
    assert made["layers"] == [1, 2]


def test_rows_of_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    Results(tmp_path / "r.json", {"model": "a", "queries": 8}).row({"seed": 0}, dict)
    with pytest.raises(SystemExit, match="queries 8, now 16"):
        Results(tmp_path / "r.json", {"model": "a", "queries": 16})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": []}', "null"])
def test_a_file_that_holds_no_results_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(SystemExit, match=r"r\.json holds no results"):
        Results(tmp_path / "r.json", {})


def test_a_row_that_fails_is_not_stored(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.json", {})
    with pytest.raises(ZeroDivisionError):
        results.row({"seed": 0}, lambda: {"net": 1 / 0})
    assert results.rows == []
    assert not results.path.exists()


def test_more_seeds_and_another_folder_are_no_other_settings() -> None:
    args = parser("doc", "some").parse_args(["--seeds", "3", "--out", "elsewhere", "--threads", "2"])
    assert settings_of(args) == settings_of(parser("doc", "some").parse_args([]))


def test_texts_are_read_back_and_half_a_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t" / "texts.jsonl"
    texts = Texts(path, "a fit")
    chunk = TextChunk("bare/alone", (3, 5), ("line\nline", "µ"))
    texts(FitEvent("responses", 2, 4, chunk))
    texts(FitEvent("responses", 4, 4))
    assert Texts(path, "a fit").chunks == [chunk]
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        again = Texts(path, "a fit")
        assert again.chunks == [chunk]
        again(FitEvent("responses", 2, 4, chunk))
        assert Texts(path, "a fit").chunks == [chunk, chunk]
    texts.forget()
    assert not path.exists()


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"
