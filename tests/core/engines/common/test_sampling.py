"""Sampling follows the filtered distribution, and each row's random numbers are its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_core.engines.common.sampling import BatchSampler, SamplingParams, choose, filter_scores, uniform

CPU = torch.device("cpu")
settings.register_profile("engines", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("engines")

scores = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40)


def sample(logits: torch.Tensor, *params: SamplingParams, drawn: int = 0) -> list[int]:
    return BatchSampler(params, [drawn] * len(params), CPU).sample(logits).tolist()


@given(scores, st.integers(0, 45), st.floats(0.01, 1.0), st.integers(0, 2**64 - 1))
def test_a_sampled_token_is_one_of_the_kept(values: list[float], top_k: int, top_p: float, seed: int) -> None:
    logits = torch.tensor([values])
    token = sample(logits, SamplingParams(1.0, top_p, top_k, seed))[0]
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[: top_k or None]
    share = torch.softmax(logits[0, order].double(), 0)
    before = float(share[: order.index(token)].sum())
    assert before < top_p + 1e-5


@given(scores, st.integers(0, 10), st.integers(0, 2**64 - 1))
def test_company_does_not_change_a_row(values: list[float], others: int, seed: int) -> None:
    logits = torch.tensor([values])
    row = SamplingParams(0.7, 0.9, 0, seed)
    company = [SamplingParams(float(i % 2), 1.0, i % 3, i) for i in range(others)]
    together = sample(torch.cat([torch.randn(others, len(values)), logits]), *company, row)
    assert together[-1] == sample(logits, row)[0]


@given(scores)
def test_temperature_zero_takes_the_most_likely(values: list[float]) -> None:
    assert sample(torch.tensor([values]), SamplingParams(0.0))[0] == int(np.argmax(np.asarray(values, np.float32)))


@pytest.mark.parametrize("temperature", [1e-46, 1e-30, 9e-6])
def test_a_temperature_too_small_for_float32_is_greedy_not_the_last_token(temperature: float) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, -2.0]])
    assert sample(logits, SamplingParams(temperature, seed=1)) == [1]
    assert sample(logits.expand(2, -1), SamplingParams(temperature), SamplingParams(1e-4)) == [1, 1]


@given(scores, st.integers(0, 2**32))
def test_top_k_of_one_is_greedy_at_any_temperature(values: list[float], seed: int) -> None:
    got = sample(torch.tensor([values]), SamplingParams(50.0, top_k=1, seed=seed))[0]
    assert values[got] == max(values)


def test_frequencies_follow_the_tempered_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    n = 20_000
    params = [SamplingParams(1.7, seed=seed) for seed in range(n)]
    counts = torch.bincount(torch.tensor(sample(logits.expand(n, -1), *params)), minlength=4) / n
    torch.testing.assert_close(counts, torch.softmax(logits[0] / 1.7, 0), atol=0.012, rtol=0)


def test_top_p_then_keeps_the_share_it_names() -> None:
    ranked = torch.log(torch.tensor([[0.1, 0.5, 0.25, 0.15]]))
    kept = filter_scores(ranked, torch.tensor([[0]]), torch.tensor([[0.7]]))
    assert torch.isfinite(kept).tolist() == [[False, True, True, False]]
    # top_k comes first and its rest is renormalised: of 0.5 and 0.25 the first alone is 0.67.
    kept = filter_scores(ranked, torch.tensor([[2]]), torch.tensor([[0.6]]))
    assert torch.isfinite(kept).tolist() == [[False, True, False, False]]


def test_random_numbers_are_uniform_and_differ_by_seed_and_step() -> None:
    seeds = np.repeat(np.arange(200, dtype=np.uint64), 100)
    steps = np.tile(np.arange(100, dtype=np.uint64), 200)
    drawn = uniform(seeds, steps)
    assert len(set(drawn.tolist())) == len(drawn)
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    histogram = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert abs(histogram - 1000).max() < 150
    # Neighbouring seeds are unrelated, not the same stream one step on.
    assert abs(np.corrcoef(drawn.reshape(200, 100)[:-1].ravel(), drawn.reshape(200, 100)[1:].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1.0 - 2.0**-53])
def test_a_token_without_probability_is_never_chosen(drawn: float) -> None:
    inf = float("-inf")
    row = torch.tensor([[inf, 0.0, inf, -3.0, inf]])
    assert choose(row, torch.tensor([drawn], dtype=torch.float64)).item() in (1, 3)


@pytest.mark.parametrize("vocabulary", [1, 255, 256, 257, 1000, 5120])
def test_two_levels_choose_as_one_sum_over_the_vocabulary_does(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    scores = torch.randn(500, vocabulary, generator=generator) * 3
    scores[torch.rand(scores.shape, generator=generator) < 0.3] = float("-inf")
    scores[:, 0] = 0.0
    scores -= scores.amax(-1, keepdim=True)
    drawn = torch.rand(500, dtype=torch.float64, generator=generator)
    cumulative = scores.double().exp().cumsum(-1)
    expected = torch.searchsorted(cumulative, drawn[:, None] * cumulative[:, -1:], right=True)[:, 0]
    assert choose(scores, drawn).tolist() == expected.tolist()


def test_the_step_counts_on() -> None:
    logits = torch.zeros(1, 1000)
    params = SamplingParams(1.0, seed=5)
    sampler = BatchSampler([params], [0], CPU)
    first, second = sampler.sample(logits).item(), sampler.sample(logits).item()
    assert first != second
    assert sample(logits, params, drawn=1) == [second]
