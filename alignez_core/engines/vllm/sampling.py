"""Converts a `GenerationRequest` to vLLM's parameters, and vLLM's log-probabilities back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from alignez_core.engines.base import FinishReason, GenerationRequest, TokenLogprob
from alignez_core.engines.common.tokens import TextTokens

#: Below this vLLM's sampler and ours are greedy.
_GREEDY = 1e-5


def sampling_params(
    request: GenerationRequest, end_ids: Collection[int], extra_args: dict[str, Any] | None, *, streamed: bool
) -> SamplingParams:
    """vLLM's sampling parameters of a request.

    Args:
        end_ids: tokens that end this request's answer; vLLM leaves the one that did out of the text.
    """
    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=0.0 if request.temperature < _GREEDY else request.temperature,
        top_p=request.top_p,
        top_k=min(request.top_k, 2**31 - 1),
        seed=None if request.seed is None else request.seed % 2**63,
        stop=list(request.stop) or None,
        stop_token_ids=sorted(end_ids) or None,
        ignore_eos=request.ignore_eos,
        logprobs=request.logprobs,
        output_kind=RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY,
        extra_args=extra_args,
    )


def finish_reason(reason: str | None) -> FinishReason | None:
    """vLLM's reason in ours."""
    if reason is None:
        return None
    return "cancelled" if reason == "abort" else "length" if reason == "length" else "stop"


def token_logprobs(
    ids: Sequence[int],
    found: Sequence[Mapping[int, Any]] | None,
    count: int | None,
    tokens: TextTokens,
    *,
    opens: bool,
) -> tuple[TokenLogprob, ...] | None:
    """One entry per token, with the `count` most likely alternatives; None when none were asked for.

    Args:
        opens: these are an answer's first tokens.
    """
    if count is None or found is None:
        return None
    entries = []
    for i, (token, alternatives) in enumerate(zip(ids, found, strict=True)):
        ranked = sorted(alternatives.items(), key=lambda item: item[1].rank)[:count]
        top = [(other, float(entry.logprob)) for other, entry in ranked]
        first = opens and i == 0
        entries.append(tokens.logprob(token, float(alternatives[token].logprob), first=first, top=top))
    return tuple(entries)
