"""Query sets and pairs from a folder: what is read, and what the user is told when it is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignez_core.models import persona_nano
from alignez_core.models.persona_nano.style import style_of
from alignez_core.spec.persona import Persona
from research.data import SLICES, preference_pairs, query_sets, urial_prefix


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in the layout of the sets, with a few rows of each."""
    rows = [{"dataset": name, "instruction": f"{name} {i}?"} for name in (*SLICES, "vicuna", "lima") for i in range(4)]
    rows.append({"dataset": "lima", "instruction": "koala 0?"})  # a text of an evaluated slice
    (tmp_path / "just_eval").mkdir()
    (tmp_path / "just_eval" / "just_eval_instruct.jsonl").write_text("\n".join(map(json.dumps, rows)))
    turn = "\n\nHuman: Why?\n\nAssistant: "
    pairs = [
        {"text": [turn + "Because.", turn + "No idea."], "score": [0.0, 1.0]},
        {"text": [turn + "A\n\nHuman: B\n\nAssistant: C", turn + "D"], "score": [1.0, 0.0]},
        {"text": [turn + " ", turn + "empty preferred"], "score": [1.0, 0.0]},
    ]
    (tmp_path / "preferences").mkdir()
    (tmp_path / "preferences" / "hh_helpful_test.json").write_text(json.dumps(pairs))
    (tmp_path / "urial").mkdir()
    turns = "".join(f"# Query:\n```\nQ {i}\n```\n\n# Answer:\n```\nA {i}\n```\n\n" for i in (1, 2))
    text = f"# Instruction\n\nBe good.\n\n{turns}"
    (tmp_path / "urial" / "inst_1k_v4.help.txt").write_text(text)
    return tmp_path


def test_slices_are_cut_and_no_evaluated_query_is_fitted_on(folder: Path) -> None:
    sets = query_sets(folder, Path("any"), fit=10, tune=2, each=3)
    assert list(sets.slices) == list(SLICES)
    assert sets.slices["mt"] == ("mt 0?", "mt 1?", "mt 2?")
    assert sets.tune == ("vicuna 0?", "vicuna 1?")
    assert "koala 0?" not in sets.fit
    assert len(sets.fit) == 4


def test_without_a_folder_the_bank_is_split_and_nothing_is_used_twice() -> None:
    sets = query_sets(None, persona_nano.MODEL_DIR, fit=24, tune=8, each=16)
    texts = [*sets.fit, *sets.tune, *sets.slices["bank"]]
    assert len(texts) == len(set(texts)) == 48


def test_too_small_a_bank_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="too few for 400"):
        query_sets(None, persona_nano.MODEL_DIR, fit=400, tune=8, each=1)
    with pytest.raises(SystemExit, match=r"just_eval_instruct.*--data"):
        query_sets(tmp_path, Path("any"), 1, 1, 1)


def test_pairs_are_dialogues_of_one_turn_with_the_higher_score_first(folder: Path) -> None:
    (pair,) = preference_pairs(folder, Path("any"), Persona(), 300, seed=0)
    assert (pair.query, pair.preferred, pair.dispreferred) == ("Why?", "No idea.", "Because.")


def test_pairs_of_persona_nano_are_in_the_two_styles() -> None:
    pairs = preference_pairs(None, persona_nano.MODEL_DIR, Persona("cheerful", "gloomy"), 40, seed=0)
    assert len(pairs) == 40
    assert {style_of(pair.preferred) for pair in pairs} == {"cheerful"}
    assert {style_of(pair.dispreferred) for pair in pairs} == {"gloomy"}
    assert preference_pairs(None, persona_nano.MODEL_DIR, Persona("zorbly", "quaxic"), 40, seed=0) == []
    assert preference_pairs(None, Path("other"), Persona("cheerful", "gloomy"), 40, seed=0) == []


def test_urial_is_a_prefix_of_instruction_and_turns(folder: Path) -> None:
    prefix = urial_prefix(folder)
    assert prefix is not None
    assert prefix.system == "Be good."
    assert prefix.examples == (("Q 1", "A 1"), ("Q 2", "A 2"))
    assert urial_prefix(None) is None
