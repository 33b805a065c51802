"""Proves on a few tokens that a model of an unlisted architecture computes the same over slots as it does by itself."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignez_core.engines.runner import SlotRunner
from alignez_core.errors import UnknownArchitecture

#: Two rows of different length, so that the mask of a ragged step is part of the proof.
_TEXTS = ((1, 4, 2, 5, 3, 6), (3, 1, 2))
_DECODED = 2


def plain_logits(model: PreTrainedModel) -> list[Tensor]:
    """(T, vocabulary) logits of each text, by the model as transformers built it."""
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([text], device=model.device)).logits[0] for text in _TEXTS]


def compare(runner: SlotRunner, expected: list[Tensor]) -> None:
    """Raises: UnknownArchitecture: prefill plus decode over slots gives other logits than one plain pass."""
    prompts = [text[:-_DECODED] for text in _TEXTS]
    tolerance = 1e-3 if expected[0].dtype == torch.float32 else 0.1
    logits = runner.prefill(prompts, [None] * len(prompts))
    for step in range(_DECODED + 1):
        for row, text in enumerate(_TEXTS):
            plain = expected[row][len(text) - _DECODED - 1 + step].float()
            if not torch.allclose(logits[row].float(), plain, atol=tolerance, rtol=tolerance):
                raise UnknownArchitecture(
                    "this architecture's attention does not give the same result over the engine's slots; "
                    "only its MLP path can be set, its attention must be of the usual causal kind"
                )
        if step < _DECODED:
            logits = runner.decode([text[len(text) - _DECODED + step] for text in _TEXTS])
    runner.reset()
