"""The engine gives the tokens and logits of Hugging Face `generate` with plain forward hooks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignez_core.editing import EditPlan
from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from tests.core.engines import tiny_models
from tests.core.engines.tiny_models import (
    ARCHITECTURES,
    N_LAYERS,
    plan,
    reference_generate,
    slot_runner,
    tiny_engine,
    tiny_model,
)

NEW_TOKENS = 10
EDITS: list[EditPlan | None] = [
    None,
    plan("alignez", 1),
    plan("alignez", 2, rule="simultaneous"),
    plan("transport", 3, strength=6.0, steps=1),
    plan("transport", 4, steps=3),
    plan("additive", 5),
    plan("alignez", 6, positions="all"),
    plan("additive", 7, steps=2, positions="all"),
    plan("distill", 8),
    plan("strong", 9),
]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_ragged_rows_with_edits_of_every_method_agree_with_hugging_face(kind: str) -> None:
    """Prompts of up to 30 tokens and sliding windows of 8, so windows count where the architecture has them."""
    prompts = tiny_models.prompts(len(EDITS), seed=3, longest=30)
    model = tiny_model(kind)
    expected = [reference_generate(model, p, e, NEW_TOKENS) for p, e in zip(prompts, EDITS, strict=True)]
    with tiny_engine(kind) as engine:
        edited = [
            GenerationRequest(p, NEW_TOKENS, 0, ignore_eos=True, edit=e) for p, e in zip(prompts, EDITS, strict=True)
        ]
        plain = [replace(request, edit=None) for request in edited]
        got, bare = ([c.token_ids for c in engine.generate(requests)] for requests in (edited, plain))
    assert [list(tokens) for tokens in got] == [tokens for tokens, _ in expected]
    changed = sum(a != b for a, b in zip(got, bare, strict=True))
    assert changed == len(EDITS) - 1, "an edit that changes no token proves nothing"

    runner = slot_runner(model, kind, len(EDITS))
    logits = runner.prefill(prompts, EDITS)
    for step in range(NEW_TOKENS):
        for row, (_, reference) in enumerate(expected):
            scale = float(reference[step].abs().max())
            torch.testing.assert_close(logits[row], reference[step], atol=2e-5 * scale, rtol=1e-4)
        logits = runner.decode([tokens[step] for tokens, _ in expected])


def by_hand_alignez(x: torch.Tensor, harm: torch.Tensor, help_: torch.Tensor, strength: float) -> torch.Tensor:
    """Section 2.3 of the paper, one vector at a time: remove along harm, then double along help."""
    harm, help_ = harm / harm.norm(), help_ / help_.norm()
    removed = x - strength * torch.dot(x, harm) * harm
    return removed + strength * torch.dot(removed, help_) * help_


def by_hand_transport(x: torch.Tensor, theta: torch.Tensor, tau: float, strength: float) -> torch.Tensor:
    theta = theta / theta.norm()
    return x + strength * (tau - torch.dot(x, theta)) * theta


@pytest.mark.parametrize("method", ["alignez", "transport"])
def test_the_engine_s_edit_is_the_formula_at_the_positions_of_the_rule(method: str) -> None:
    """A reference that shares nothing with `EditPlan`: formula and positions spelled out on whole-text forwards."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(2, N_LAYERS, tiny_models.HIDDEN, generator=generator)
    prompt, strength, steps, tau = tiny_models.prompts(1, seed=9)[0], 1.5, 3, 18.0
    if method == "alignez":
        edit = EditPlan.alignez(range(N_LAYERS), rows[0], rows[1], strength)
    else:
        edit = EditPlan.transport(range(N_LAYERS), rows[0], torch.full((N_LAYERS,), tau), strength, steps)
    first = len(prompt) - 1

    def is_edited(position: int) -> bool:
        return position >= first if method == "alignez" else first <= position < first + steps

    def edit_output(layer: int, output: torch.Tensor) -> torch.Tensor:
        edited = output.clone()
        for t in range(output.shape[1]):
            if not is_edited(t):
                continue
            if method == "alignez":
                edited[0, t] = by_hand_alignez(output[0, t], rows[0, layer], rows[1, layer], strength)
            else:
                edited[0, t] = by_hand_transport(output[0, t], rows[0, layer], tau, strength)
        return edited

    model = tiny_model("llama")
    for layer in range(N_LAYERS):
        model.model.layers[layer].mlp.register_forward_hook(lambda m, a, out, layer=layer: edit_output(layer, out))
    tokens: list[int] = []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):  # no cache: every step reads the whole text again
            tokens.append(int(model(torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
    request = GenerationRequest(prompt, NEW_TOKENS, 0, ignore_eos=True, edit=edit)
    with tiny_engine() as engine:
        assert list(engine.generate([request])[0].token_ids) == tokens
        assert list(engine.generate([replace(request, edit=None)])[0].token_ids) != tokens


def test_the_real_chat_model_gives_the_tokens_of_hugging_face(repository_root: Path) -> None:
    directory = repository_root.parent / "shared" / "models" / "neo3m-chat"
    if not directory.is_dir():
        pytest.skip("the local test model neo3m-chat is not beside the repository")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    generator = torch.Generator().manual_seed(0)
    edits: list[EditPlan | None] = [None]
    for seed in range(3):
        rows = torch.randn(2, model.config.hidden_size, generator=generator)
        edits += [
            EditPlan.alignez([2 + seed, 6], rows, rows.flip(0), 3.0),
            EditPlan.transport([2 + seed, 6], rows, torch.tensor([12.0, -12.0]), steps=1 + seed),
        ]
    with TransformersEngine.load(directory) as engine:
        text = engine.prompt_format.wrap("What did you do on the weekend?")
        prompt = engine.tokenize(text)
        requests = [GenerationRequest(text, 24, temperature=0, ignore_eos=True, edit=edit) for edit in edits]
        got = [list(completion.token_ids) for completion in engine.generate(requests)]
    expected = [reference_generate(model, prompt, edit, 24)[0] for edit in edits]
    assert got == expected
    assert all(tokens != expected[0] for tokens in expected[1:])
