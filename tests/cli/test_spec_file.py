"""Specs from files and options: what is right is read, what is wrong is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.client import profile_choice
from cli.errors import CliError
from cli.spec_file import read_json, read_pairs, read_queries, settings_of


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_queries_are_lines_or_objects_with_phrases(tmp_path: Path) -> None:
    path = write(tmp_path / "q", 'Why?\n\n{"text": "At work?", "preferred": "formal"}\n')
    assert read_queries(path) == ["Why?", {"text": "At work?", "preferred": "formal"}]


def test_pairs_are_objects(tmp_path: Path) -> None:
    path = write(tmp_path / "p", '{"query": "Why?", "preferred": "So.", "dispreferred": "No."}')
    assert read_pairs(path) == [{"query": "Why?", "preferred": "So.", "dispreferred": "No."}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ok?\n{nonsense", "line 2: not JSON"),
        ('{"words": 1}', "line 1: an object with text"),
        ("\n", "no queries"),
        ('ok?\n{"text": 3}', "line 2: text must be text, got 3"),
        ("{" + "[" * 100_000, "line 1: not JSON"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CliError, match=message):
        read_queries(write(tmp_path / "q", text))


def test_a_missing_file_and_a_wrong_encoding_say_so(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="cannot be read"):
        read_queries(tmp_path / "absent")
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(CliError, match="UTF-8"):
        read_queries(tmp_path / "latin")
    with pytest.raises(CliError, match="not a JSON object"):
        read_json(write(tmp_path / "j", "[1]"))
    with pytest.raises(CliError, match="line 2 column 8"):
        read_json(write(tmp_path / "k", '{\n"fit": }'))


def test_settings_are_json_where_they_can_be() -> None:
    given = ["method=alignez", "neighbors=5", "steps=null", "layers=[1, 2]", "conditional=false"]
    assert settings_of(given) == {
        "method": "alignez", "neighbors": 5, "steps": None, "layers": [1, 2], "conditional": False,
    }  # fmt: skip
    with pytest.raises(CliError, match="NAME=VALUE"):
        settings_of(["alignez"])


def test_a_profile_is_named_with_its_alias_or_version() -> None:
    assert profile_choice("ada") == {"name": "ada"}
    assert profile_choice("ada:beta", 0.5) == {"name": "ada", "alias": "beta", "strength": 0.5}
    assert profile_choice("ada#3") == {"name": "ada", "version": 3}
