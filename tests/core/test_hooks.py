"""`edited_forward` edits each row of a plain model's batch, and nothing once it is left."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from alignez_core.editing import EditPlan
from alignez_core.errors import InvalidInput, ModelMismatch
from alignez_core.hooks import edited_forward
from tests.core.engines.tiny_models import plan, prompts, reference_generate, tiny_model

PLANS = [plan("alignez", 1), None, plan("transport", 2, steps=2), plan("additive", 3, positions="all")]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_with_left_padding_gives_each_row_its_own_edit(kind: str, use_cache: bool) -> None:
    model = tiny_model(kind)
    texts = prompts(4, seed=8, longest=14)
    width = max(len(text) for text in texts)
    ids = torch.tensor([[0] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    settings: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with edited_forward(model, PLANS, prompt_lengths=[len(text) for text in texts]):
        out = cast(Any, model).generate(ids, attention_mask=mask, use_cache=use_cache, **settings)
    expected = [reference_generate(model, text, edit, 6)[0] for text, edit in zip(texts, PLANS, strict=True)]
    assert out[:, width:].tolist() == expected
    bare = [reference_generate(model, text, None, 6)[0] for text in texts]
    assert [a != b for a, b in zip(expected, bare, strict=True)] == [True, False, True, True]


def test_rows_without_an_edit_and_the_model_afterwards_keep_every_bit() -> None:
    model = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7, 8]] * 3)
    with torch.no_grad():
        before = model(ids).logits
        with edited_forward(model, [PLANS[0], None, plan("additive", strength=0.0)]):
            inside = model(ids).logits
        after = model(ids).logits
    assert torch.equal(after, before)
    assert torch.equal(inside[1:], before[1:])
    assert not torch.equal(inside[0, -1], before[0, -1])
    # Only the last prompt token is edited, so what was said before it stays.
    assert torch.equal(inside[0, :-1], before[0, :-1])


def test_hooks_are_removed_on_errors_and_misfits_are_refused() -> None:
    model = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(ids).logits
    with pytest.raises(InvalidInput, match="2 edits for a batch of 1"), edited_forward(model, [PLANS[0], None]):
        model(ids)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
    with (
        pytest.raises(ModelMismatch),
        edited_forward(model, [EditPlan.additive([7], torch.ones(1, 32))]),
    ):
        pass
    with pytest.raises(InvalidInput), edited_forward(model, [None], prompt_lengths=[1, 2]):
        pass
