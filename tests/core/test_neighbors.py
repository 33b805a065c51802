"""Neighbours: cosine, nearest first, itself first when it is in the bank."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_core.errors import DegenerateEmbeddings, InvalidInput, TooFewSamples
from alignez_core.neighbors import nearest


def test_by_hand() -> None:
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.1], [5.0, 0.0], [-1.0, 0.0]])
    assert nearest(torch.tensor([2.0, 0.0]), bank, 3).tolist() == [2, 1, 0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), k=st.integers(1, 12))
def test_equals_brute_force_and_ignores_lengths(seed: int, k: int) -> None:
    g = torch.Generator().manual_seed(seed)
    bank, query = torch.randn(12, 5, generator=g), torch.randn(5, generator=g)
    cosine = torch.nn.functional.cosine_similarity(bank.double(), query.double().unsqueeze(0))
    expected = sorted(range(12), key=lambda i: -float(cosine[i]))[:k]
    assert nearest(query, bank, k).tolist() == expected
    assert nearest(query * 7, bank * torch.rand(12, 1, generator=g).add(0.1), k).tolist() == expected


def test_a_query_of_the_bank_is_its_own_nearest_and_ties_go_to_the_lower_index() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    assert nearest(bank[2], bank, 2).tolist() == [1, 2]
    assert nearest(bank, bank, 1).tolist() == [[0], [1], [1]]


def test_more_neighbours_than_rows_names_both() -> None:
    with pytest.raises(TooFewSamples, match=r"neighbors=11 .* 10 "):
        nearest(torch.ones(3), torch.ones(10, 3), 11)


def test_rows_without_a_cosine_are_an_error() -> None:
    with pytest.raises(DegenerateEmbeddings):
        nearest(torch.zeros(3), torch.ones(4, 3), 1)
    with pytest.raises(InvalidInput):
        nearest(torch.ones(2), torch.ones(4, 3), 1)
