"""DPO: TRL's loss against the formula in plain torch, what is trained on, and what a training leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignez_core.engines.base import ScoreRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.models import persona_nano
from alignez_core.prompts import PlainFormat
from alignez_core.spec.persona import GivenPair, Persona
from research.data import preference_pairs
from research.dpo import TrainSettings, make_trainer, preference_row, train

#: TRL and PEFT use names of transformers that its next major version drops.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

PAIRS = preference_pairs(None, persona_nano.MODEL_DIR, Persona("cheerful", "gloomy"), 24, seed=0)


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    with TransformersEngine.load(persona_nano.MODEL_DIR, dtype="float32") as engine:
        yield engine


@pytest.fixture
def trainer(engine: TransformersEngine, tmp_path: Path) -> Any:
    settings = TrainSettings(batch=4)
    return make_trainer(persona_nano.MODEL_DIR, PAIRS, engine.prompt_format, tmp_path, settings, dtype="float32")


def test_the_model_trains_on_the_prompts_that_it_is_served(trainer: Any, engine: TransformersEngine) -> None:
    form = engine.prompt_format
    for row, pair in zip(trainer.train_dataset, PAIRS, strict=True):
        assert row["prompt_ids"] == engine.tokenize(form.wrap(pair.query))
        for side, text in (("chosen_ids", pair.preferred), ("rejected_ids", pair.dispreferred)):
            answer = engine.tokenize(form.wrap(pair.query) + text)[len(row["prompt_ids"]) :]
            assert row[side][: len(answer)] == answer
            assert len(row[side]) == len(answer) + 1  # the token that ends the turn


def test_a_plain_model_trains_on_a_text() -> None:
    row = preference_row(GivenPair("Why?", "So.", "No."), PlainFormat())
    assert row == {"prompt": "Why?\nAnswer:", "chosen": " So.", "rejected": " No."}


def test_the_loss_is_that_of_the_paper_s_formula(trainer: Any) -> None:
    """−log σ(β (Δpolicy − Δreference)), Δ the difference of the answers' log-probabilities, by plain passes."""
    model = trainer.model.eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at the start, so that policy and reference are the same
            weight.data = 0.5 * torch.randn(weight.shape, generator=generator)
    rows = [trainer.train_dataset[i] for i in range(4)]
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        loss = float(trainer.compute_loss(model, dict(batch)))

        def logprob(row: dict[str, Any], side: str) -> Tensor:
            ids = torch.tensor([row["prompt_ids"] + row[side]])
            scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            return scores.gather(-1, ids[0, 1:, None])[len(row["prompt_ids"]) - 1 :].sum()

        def margins() -> Tensor:
            return torch.stack([logprob(row, "chosen_ids") - logprob(row, "rejected_ids") for row in rows])

        policy = margins()
        with model.disable_adapter():
            reference = margins()
    assert not torch.allclose(policy, reference, atol=0.5)
    expected = -torch.nn.functional.logsigmoid(0.1 * (policy - reference)).mean()
    assert loss == pytest.approx(float(expected), abs=1e-4)


def test_a_single_step_changes_the_adapter(engine: TransformersEngine, tmp_path: Path) -> None:
    settings = TrainSettings(batch=16)
    form = engine.prompt_format
    single = make_trainer(persona_nano.MODEL_DIR, PAIRS[:7], form, tmp_path, settings, dtype="float32")
    single.train()
    assert single.state.max_steps == 1
    assert any(bool(weight.any()) for name, weight in single.model.named_parameters() if "lora_B" in name)


def test_the_adapter_has_the_paper_s_dropout(trainer: Any) -> None:
    rates = {module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)}
    assert 0.05 in rates


@pytest.mark.slow
def test_a_training_raises_the_margin_and_leaves_a_model_to_serve(engine: TransformersEngine, tmp_path: Path) -> None:
    settings = TrainSettings(learning_rate=2e-3, batch=8, epochs=3)
    form = engine.prompt_format
    trainer = make_trainer(persona_nano.MODEL_DIR, PAIRS, form, tmp_path, settings, dtype="float32")
    done = train(trainer, tmp_path / "m")
    assert (done.pairs, done.accuracy) == (24, 1.0)
    assert done.loss < 0.68  # log 2 at the start
    assert done.tokens > 3 * 24 * 40

    def margin(model: TransformersEngine) -> float:
        prompts = [model.prompt_format.wrap(pair.query) for pair in PAIRS]
        sides = [[p.preferred for p in PAIRS], [p.dispreferred for p in PAIRS]]
        chosen, rejected = (
            model.score([ScoreRequest(prompt, text) for prompt, text in zip(prompts, side, strict=True)])
            for side in sides
        )
        return sum(float(a.sum() - b.sum()) for a, b in zip(chosen, rejected, strict=True)) / len(PAIRS)

    with TransformersEngine.load(tmp_path / "m", dtype="float32") as tuned:
        assert tuned.info.fingerprint != engine.info.fingerprint
        assert margin(tuned) > margin(engine) + 0.5
