"""Whole texts through the model, in batches bounded by tokens: MLP outputs for fitting, scores of given answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Span
from alignez_core.engines.runner import SlotRunner
from alignez_core.engines.slot_edits import low_rank_edit


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped so that texts of like length share a batch of at most `budget` tokens, padding included."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and lengths[index] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def mlp_outputs(runner: SlotRunner, texts: Sequence[Sequence[int]], spans: Sequence[Span], n_layers: int) -> Tensor:
    """(n, L, D) float32 on the CPU: each layer's unedited MLP output, averaged over each text's span."""
    reader = _SpanMeans(spans, max(len(text) for text in texts), n_layers)
    runner.read(texts, reader)
    return torch.stack(reader.layers, dim=1).cpu()


def continuation_logprobs(
    runner: SlotRunner,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    edits: Sequence[EditPlan | None],
) -> list[Tensor]:
    """(T,) float32 log-probabilities, nats, of each continuation after its prompt, under its edit."""
    texts = [[*prompt, *tail] for prompt, tail in zip(prompts, continuations, strict=True)]
    longest = max(len(text) for text in texts)
    edited = _WholeTextEdits(edits, [len(prompt) for prompt in prompts], longest)
    # The token at position t is predicted at position t - 1.
    spans = [range(len(prompt) - 1, len(text) - 1) for prompt, text in zip(prompts, texts, strict=True)]
    logits = runner.logits(texts, spans, edited if edited.rows else None)
    scores = []
    for rows, tail in zip(logits, continuations, strict=True):
        chosen = torch.as_tensor(tail, device=rows.device)[:, None]
        scores.append(rows.float().log_softmax(-1).gather(1, chosen)[:, 0].cpu())
    return scores


class _SpanMeans:
    """Reduces every layer's output at once, so that a batch keeps (n, D) per layer and not (n, T, D)."""

    def __init__(self, spans: Sequence[Span], length: int, n_layers: int) -> None:
        self._spans = spans
        self._length = length
        self.layers: list[Tensor] = [torch.empty(0)] * n_layers

    def take(self, layer: int, output: Tensor) -> None:
        out = output.view(len(self._spans), self._length, output.shape[-1])
        rows = [row[span.start : span.end].float().mean(0) for row, span in zip(out, self._spans, strict=True)]
        self.layers[layer] = torch.stack(rows)


class _WholeTextEdits:
    """Each row's plan at every position that the plan covers."""

    def __init__(self, plans: Sequence[EditPlan | None], prompt_lengths: Sequence[int], length: int) -> None:
        self._count = len(plans)
        self.rows: list[tuple[int, EditPlan, Tensor]] = []
        for i, (plan, prompt_length) in enumerate(zip(plans, prompt_lengths, strict=True)):
            if plan is not None and not plan.is_identity:
                covered = [t for t in range(length) if plan.covers(t, prompt_length)]
                self.rows.append((i, plan, torch.tensor(covered)))

    def apply(self, layer: int, output: Tensor) -> Tensor | None:
        edited = [(i, plan, at.to(output.device)) for i, plan, at in self.rows if layer in plan.layers]
        if not edited:
            return None
        out = output.clone().view(self._count, -1, output.shape[-1])
        for i, plan, at in edited:
            k = plan.layers.index(layer)
            u, v, c = (table[k].to(output.device).unsqueeze(0) for table in (plan.U, plan.V, plan.c))
            out[i, at] = low_rank_edit(out[i, at].float().unsqueeze(0), u, v, c)[0].to(out.dtype)
        return out.view(output.shape)
