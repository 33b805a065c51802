"""The shipped queries, and a model directory's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignez_core.errors import ModelNotFound
from alignez_core.query_bank import BANK_FILE, default_queries, queries_for


def test_the_bank_is_large_enough_and_has_no_repetition() -> None:
    queries = default_queries()
    assert len(queries) >= 64
    assert len({q.casefold() for q in queries}) == len(queries)
    assert queries_for(None) == queries


def test_a_model_directory_brings_its_own(tmp_path: Path) -> None:
    assert queries_for(tmp_path) == default_queries()
    (tmp_path / BANK_FILE).write_text(json.dumps(["One?", "Two?"]))
    assert queries_for(tmp_path) == queries_for(str(tmp_path)) == ("One?", "Two?")


def test_a_hub_id_has_no_bank_of_its_own() -> None:
    assert queries_for("org/model") == default_queries()


@pytest.mark.parametrize("content", ["{", "{}", "[]", '["", 3]'])
def test_a_broken_bank_says_what_to_mend(tmp_path: Path, content: str) -> None:
    (tmp_path / BANK_FILE).write_text(content)
    with pytest.raises(ModelNotFound, match="fix or remove it"):
        queries_for(tmp_path)
