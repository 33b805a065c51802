"""Chooses each row's next token, all rows at once, with randomness that belongs to the row.

A row's n-th random number is a function of (seed, n) only, so a seeded request gives the same tokens alone and in
company. One number chooses one token, by inverting the cumulative distribution over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

#: splitmix64 (Steele, Lea, Flood 2014), the constants of its reference implementation.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
#: Temperatures below this are greedy: in float32 a smaller one can be 0, and 0 ÷ 0 is no score.
GREEDY_BELOW = 1e-5
#: Tokens whose weights are summed before one of them is looked for.
_BLOCK = 256


@dataclass(frozen=True)
class SamplingParams:
    """Sampling settings of one row, with the fields of `GenerationRequest`. `seed` is any integer."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


class BatchSampler:
    """The sampling settings of one batch, in row order; rebuilt when rows join or leave.

    Args:
        params: B rows.
        drawn: (B,) tokens that each row has sampled before.
    """

    def __init__(self, params: Sequence[SamplingParams], drawn: Sequence[int], device: torch.device) -> None:
        self._device = device
        random = [i for i, p in enumerate(params) if p.temperature >= GREEDY_BELOW]
        self._greedy = not random
        self._rows = None if len(random) == len(params) else torch.tensor(random, device=device)
        chosen = [params[i] for i in random]
        self._temperatures = torch.tensor([p.temperature for p in chosen], device=device)[:, None]
        self._seeds = np.array([p.seed % 2**64 for p in chosen], dtype=np.uint64)
        self._drawn = np.array([drawn[i] for i in random], dtype=np.uint64)
        filtered = [i for i, p in enumerate(chosen) if p.top_p < 1.0 or p.top_k > 0]
        self._filtered = torch.tensor(filtered, device=device) if filtered else None
        self._top_p = torch.tensor([chosen[i].top_p for i in filtered], device=device)[:, None]
        self._top_k = torch.tensor([chosen[i].top_k for i in filtered], device=device)[:, None]

    def sample(self, logits: Tensor) -> Tensor:
        """(B,) int64 tokens from (B, vocabulary) logits; a greedy row takes the first of the most likely."""
        if self._greedy:
            return most_likely(logits)
        scores = (logits if self._rows is None else logits[self._rows]).float()
        scores = (scores - scores.amax(-1, keepdim=True)).div_(self._temperatures)
        if self._filtered is not None:
            scores[self._filtered] = filter_scores(scores[self._filtered], self._top_k, self._top_p)
        drawn = torch.from_numpy(uniform(self._seeds, self._drawn)).to(self._device)
        self._drawn += np.uint64(1)
        tokens = choose(scores, drawn)
        if self._rows is None:
            return tokens
        return most_likely(logits).index_copy_(0, self._rows, tokens)


def most_likely(logits: Tensor) -> Tensor:
    """(B,) int64: the first of the most likely tokens of each row."""
    if logits.device.type == "cpu":
        # numpy's is vectorised, torch's (2.13) is not: 0.02 against 0.3 ms for 64 rows of 4096. It has no bfloat16.
        return torch.from_numpy(logits.float().numpy().argmax(-1))
    return logits.argmax(-1)


def uniform(seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(B,) float64 in [0, 1), the step-th random number of each seed. seeds, steps: (B,) uint64."""
    # The seed is mixed first: streams of neighbouring seeds must not be the same stream, shifted.
    state = _mix(seeds) + (steps + np.uint64(1)) * _GOLDEN
    return (_mix(state) >> np.uint64(11)) * 2.0**-53


def choose(scores: Tensor, drawn: Tensor) -> Tensor:
    """(B,) tokens: where the cumulative distribution of softmax(scores) passes drawn.

    In two levels, a block of tokens and a token of it, because a float64 sum over all of 49,152 tokens takes as long as
    a quarter of the forward pass of a small model. Sums of blocks and within one are float64: 150,000 float32 terms
    would lose the small ones.

    Args:
        scores: (B, V) float32, row maximum 0; −inf never is chosen. drawn: (B,) float64 in [0, 1).
    """
    missing = -scores.shape[-1] % _BLOCK
    whole = pad(scores, (0, missing), value=float("-inf")) if missing else scores
    weights = whole.exp().reshape(len(whole), -1, _BLOCK)
    sums = weights.sum(-1).cumsum(-1, dtype=torch.float64)
    block, share = _passed(sums, drawn)
    within = weights[torch.arange(len(block), device=block.device), block].cumsum(-1, dtype=torch.float64)
    return block * _BLOCK + _passed(within, share)[0]


def _passed(cumulative: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) the first place whose cumulative weight is above the drawn share of the total, and how far into its weight.

    Args:
        cumulative: (B, N) float64, not all 0. drawn: (B,) float64 in [0, 1).
    """
    total = cumulative[:, -1]
    # Below the total by at least one step, so that rounding cannot pass the last place that has weight.
    target = torch.minimum(drawn * total, torch.nextafter(total, torch.zeros_like(total)))[:, None]
    place = torch.searchsorted(cumulative, target, right=True)
    end = cumulative.gather(-1, place)
    start = torch.where(place > 0, cumulative.gather(-1, (place - 1).clamp_min(0)), 0.0)
    return place[:, 0], ((target - start) / (end - start))[:, 0]


def filter_scores(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Scores with all but the kept tokens at −inf: first the top_k, of these the fewest that reach top_p.

    Args:
        scores: (B, V). top_k: (B, 1), 0 is off. top_p: (B, 1), the most likely token always stays.
    """
    ranked, index = scores.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    ranked = ranked.masked_fill((top_k > 0) & (rank >= top_k), float("-inf"))
    share = ranked.softmax(-1)
    ranked = ranked.masked_fill((share.cumsum(-1) - share >= top_p) & (rank > 0), float("-inf"))
    return torch.empty_like(scores).scatter_(-1, index, ranked)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed
