"""Whole texts through the model, in batches bounded by tokens: MLP outputs for fitting, scores of given answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Span
from alignez_core.engines.slots.runner import SlotRunner
from alignez_core.engines.slots.step import Packing


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


@dataclass(frozen=True)
class Pack:
    """Continuations of one prompt that are read in one row, so that the prompt is read once.

    Args:
        members: index of each continuation in the caller's list. edit: of a pack with one member.
    """

    prompt: Sequence[int]
    tails: tuple[Sequence[int], ...]
    members: tuple[int, ...]
    edit: EditPlan | None = None

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return len(self.prompt) + sum(len(tail) for tail in self.tails)


def pack(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], edits: Sequence[EditPlan | None], limit: int
) -> list[Pack]:
    """Groups unedited continuations of equal prompts into packs of at most `limit` tokens; others stay alone.

    Args:
        rows: (prompt, continuation) token ids.
    """
    packs: list[Pack] = []
    open_packs: dict[tuple[int, ...], Pack] = {}
    for i, ((prompt, tail), edit) in enumerate(zip(rows, edits, strict=True)):
        if edit is not None and not edit.is_identity:
            packs.append(Pack(prompt, (tail,), (i,), edit))
            continue
        key = tuple(prompt)
        found = open_packs.get(key)
        if found is not None and found.length + len(tail) <= limit:
            open_packs[key] = Pack(prompt, (*found.tails, tail), (*found.members, i))
            continue
        if found is not None:
            packs.append(found)
        open_packs[key] = Pack(prompt, (tail,), (i,))
    return [*packs, *open_packs.values()]


def pack_logprobs(runner: SlotRunner, packs: Sequence[Pack]) -> list[Tensor]:
    """(T,) float32 log-probabilities, nats, of each continuation after its prompt, pack by pack, member by member."""
    texts = [[*p.prompt, *(token for tail in p.tails for token in tail)] for p in packs]
    longest = max(len(text) for text in texts)
    edited = WholeTextEdits([p.edit for p in packs], [len(p.prompt) for p in packs], longest)
    wanted: list[list[int]] = []
    for p in packs:
        places, start = [], len(p.prompt)
        for tail in p.tails:
            # The token at place t is predicted at place t - 1; a continuation's first one at the prompt's end.
            places += [len(p.prompt) - 1, *range(start, start + len(tail) - 1)]
            start += len(tail)
        wanted.append(places)
    packing = _packing(packs, longest, runner) if any(len(p.tails) > 1 for p in packs) else None
    logits = runner.logits(texts, wanted, edited if edited.rows else None, packing)
    tails = [tail for p in packs for tail in p.tails]
    scores = []
    # Continuation by continuation: a large vocabulary's probabilities of a whole batch would fill the memory.
    for rows, tail in zip(torch.split(logits, [len(tail) for tail in tails]), tails, strict=True):
        chosen = torch.as_tensor(tail, device=rows.device)[:, None]
        rows = rows.float()
        scores.append((rows.gather(1, chosen)[:, 0] - rows.logsumexp(-1)).cpu())
    return scores


def _packing(packs: Sequence[Pack], length: int, runner: SlotRunner) -> Packing:
    positions, owner = (torch.zeros(len(packs), length, dtype=torch.long) for _ in range(2))
    for row, p in enumerate(packs):
        start = len(p.prompt)
        positions[row, :start] = torch.arange(start)
        for k, tail in enumerate(p.tails, 1):
            end = start + len(tail)
            positions[row, start:end] = torch.arange(len(p.prompt), len(p.prompt) + len(tail))
            owner[row, start:end] = k
            start = end
        owner[row, start:] = len(p.tails) + 1  # padding, which nobody sees
    return Packing(positions.to(runner.device), owner.to(runner.device))


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


class WholeTextEdits:
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
            out[i, at] = plan.apply(out[i, at], layer)
        return out.view(output.shape)
