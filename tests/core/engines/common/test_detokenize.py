"""Text that arrives piece by piece is the text of the whole, cut before stop strings."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from alignez_core.engines.common.detokenize import IncrementalText, full_text
from tests.core.engines.tiny_models import byte_tokenizer

BYTES = byte_tokenizer()
calm = settings(deadline=None, derandomize=True, max_examples=80)


def decode(ids: Sequence[int]) -> str:
    return str(BYTES.decode(list(ids), skip_special_tokens=True))


def pieces_of(text: str, stop: Sequence[str] = ()) -> list[str]:
    incremental = IncrementalText(decode, stop)
    pieces = []
    for token in BYTES.encode(text):
        pieces.append(incremental.add(token))
        if incremental.stopped:
            return pieces
    return [*pieces, incremental.finish()]


@calm
@given(st.text(max_size=30))
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pieces_of(text)) == text


@calm
@given(
    st.text(alphabet="abc€\n", max_size=25), st.lists(st.text(alphabet="abc€\n", min_size=1, max_size=4), max_size=3)
)
def test_the_text_is_cut_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    got = "".join(pieces_of(text, stops))
    found = [text.find(stop) for stop in stops if stop in text]
    # One token can complete two stop strings at once; the text up to the earlier one is what a reader may see.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not found:
        assert got == text
    else:
        seen = text[: min(ends)]
        assert got == text[: min(seen.find(stop) for stop in stops if stop in seen)]


@calm
@given(st.lists(st.integers(3, 258), max_size=24))
def test_broken_bytes_stream_as_they_complete(ids: list[int]) -> None:
    incremental = IncrementalText(decode)
    assert "".join([*[incremental.add(token) for token in ids], incremental.finish()]) == full_text(decode, ids)


def test_an_unfinished_character_is_held_back() -> None:
    assert pieces_of("a🎈") == ["a", "", "", "", "🎈", ""]


def test_an_unfinished_character_at_the_end_is_not_lost() -> None:
    incremental = IncrementalText(decode)
    assert [incremental.add(token) for token in BYTES.encode("é")[:1]] == [""]
    assert incremental.finish() == "\N{REPLACEMENT CHARACTER}"


def test_what_could_begin_a_stop_string_is_held_back_until_it_does_not() -> None:
    assert pieces_of("x ENx", ("END",)) == ["x", " ", "", "", "ENx", ""]
    assert pieces_of("x END", ("END",)) == ["x", " ", "", "", ""]


@pytest.mark.parametrize("ids", [[2, 3], [1, 2, 1, 3], [2]])
def test_sentencepiece_spaces_survive_streaming(ids: list[int]) -> None:
    vocab = {piece: i for i, piece in enumerate(["<unk>", "▁", "▁one", "▁two"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    incremental = IncrementalText(tokenizer.decode)
    assert "".join([*[incremental.add(token) for token in ids], incremental.finish()]) == tokenizer.decode(ids)
