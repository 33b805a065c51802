"""Queries on which a persona is fitted when its owner gives none.

A model directory can bring its own (`query_bank.json`, a list of strings), matched to the model. The shipped bank,
`query_bank.toml`, serves all other models: everyday questions of many kinds, so that most requests have neighbours.
"""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import Path

from alignez_core.errors import ModelNotFound

BANK_FILE = "query_bank.json"


@cache
def default_queries() -> tuple[str, ...]:
    """The shipped bank. The kinds of questions alternate, so that every prefix of the bank is varied."""
    text = Path(__file__).with_name("query_bank.toml").read_text(encoding="utf-8")
    columns = [[kind["template"].format(end) for end in kind["endings"]] for kind in tomllib.loads(text)["questions"]]
    longest = max(len(column) for column in columns)
    return tuple(column[i] for i in range(longest) for column in columns if i < len(column))


def queries_for(model: str | Path | None) -> tuple[str, ...]:
    """The bank of a model directory, or the shipped one if the directory has none.

    Args:
        model: a directory; a hub id and None get the shipped bank.
    Raises: ModelNotFound: the directory's bank is not a JSON list of non-empty strings.
    """
    path = None if model is None else Path(model).expanduser() / BANK_FILE
    if path is None or not path.is_file():
        return default_queries()
    try:
        queries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelNotFound(f"{path} is not valid JSON; fix or remove it: {error}") from error
    if not isinstance(queries, list) or not queries or not all(isinstance(q, str) and q.strip() for q in queries):
        raise ModelNotFound(f"{path} must hold a JSON list of non-empty strings; fix or remove it")
    return tuple(queries)
