"""Figure 3 from its command line to its files, and again from its stored rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from research import figure3

#: TRL and PEFT use names of transformers that its next major version drops.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

SMALL = ["--queries", "2", "--fit-queries", "10", "--tune-queries", "2", "--answer-tokens", "16", "--threads", "1"]


@pytest.mark.slow
def test_figure_3_trains_once_per_share_and_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*SMALL, "--shares", "10", "50", "--pairs", "20", "--batch", "2", "--out", str(tmp_path)]
    figure3.run(figure3.options().parse_args(options))
    rows = json.loads((tmp_path / "figure3-persona-nano.json").read_text())["rows"]
    assert [(row["share"], row["pairs"]) for row in rows] == [(0, 0), (10, 2), (50, 10)]
    for row in rows:
        assert set(figure3.ARMS) <= set(row["arms"])
        costs = [row["cost"][arm]["tokens"] for arm in figure3.ARMS]
        assert costs[0] < costs[1] < costs[2]  # distill answers and chooses, alignez only describes
    printed = (tmp_path / "figure3-persona-nano.md").read_text()
    assert "| 0 % | 0 | untrained + distill | 2 |" in printed
    assert "| 50 % | 10 | dpo + alignez | 2 |" in printed
    assert not list((tmp_path / "unfinished").iterdir())

    monkeypatch.setattr(figure3, "make_trainer", lambda *args, **kwargs: pytest.fail("the rows are stored"))
    figure3.run(figure3.options().parse_args(options))
    assert (tmp_path / "figure3-persona-nano.md").read_text() == printed


def test_without_pairs_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    options = figure3.options().parse_args(["--preferred", "zorbly", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"no ground-truth pairs for 'zorbly'.*--data"):
        figure3.run(options)
