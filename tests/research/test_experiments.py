"""Every experiment from its command line to its files, on persona-nano, and again from its stored rows."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from research import slices
from research.__main__ import SHORT
from research.personas import styled_personas

SMALL = ["--queries", "2", "--fit-queries", "10", "--tune-queries", "2", "--answer-tokens", "16", "--threads", "1"]
#: Experiment → further options, its rows and a text of its table.
EXPERIMENTS = {
    "table1": (["--pairs", "20"], 1, "| bank | alignez, own queries | 2 |"),
    "table2": (["--seeds", "2"], 2, "| bank | urial + distill | 2 |"),
    "figure4": (["--neighbors", "3", "10", "--layers", "1", "8"], 1, "| K=10 | 2 |"),
    "steps": (["--schedules", "all", "first 1"], 1, "| bank | distill, first 1 | 2 |"),
    "predictor": (["--personas", "formal/slang"], 1, "| persona-nano | distill | 1 |"),
    "axbench": (["--personas", "formal/slang"], 1, "| prompt | 2 |"),
    "persona_vectors": (["--personas", "formal/slang"], 1, "| distill × 1 | 2 |"),
}


def test_the_short_form_runs_every_experiment_here_and_knows_their_options() -> None:
    assert {*EXPERIMENTS, "figure3"} == set(SHORT)  # which test_figure3 runs
    for name, options in SHORT.items():
        importlib.import_module(f"research.{name}").options().parse_args(options)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_an_experiment_writes_its_figures_and_takes_stored_rows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more, rows, line = EXPERIMENTS[name]
    module = importlib.import_module(f"research.{name}")
    options = [*SMALL, *more, "--out", str(tmp_path)]
    module.run(module.options().parse_args(options))
    stem = f"{name}-persona-nano"
    stored = json.loads((tmp_path / f"{stem}.json").read_text())
    assert len(stored["rows"]) == rows
    assert stored["settings"]["queries"] == 2
    printed = (tmp_path / f"{stem}.md").read_text()
    assert line in printed
    assert "nan " not in printed
    assert "(nan" not in printed
    assert (tmp_path / f"{stem}.svg").read_text().startswith("<?xml")
    assert not list((tmp_path / "texts").iterdir())

    capsys.readouterr()
    monkeypatch.setattr(slices, "engine_of", lambda *args: pytest.fail("all rows are stored"))
    monkeypatch.setattr("research.personas.engine_of", lambda *args: pytest.fail("all rows are stored"))
    module.run(module.options().parse_args(options))
    assert (tmp_path / f"{stem}.md").read_text() == printed


def test_an_unknown_persona_is_named() -> None:
    with pytest.raises(SystemExit, match="no persona 'zorbly'; there are"):
        styled_personas("persona-nano", ["zorbly"])


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    from research import table2

    with pytest.raises(SystemExit, match="cannot be loaded"):
        table2.run(table2.options().parse_args([*SMALL, "--model", str(tmp_path / "none"), "--out", str(tmp_path)]))
