"""The exact scorer and the shipped weights."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from typing import Any, cast

import pytest

from alignez_core.models import persona_nano
from alignez_core.models.persona_nano.style import score_style, style_of
from alignez_core.models.persona_nano.styles import ALL_STYLES, PLAIN
from alignez_core.models.persona_nano.topics import TOPICS, query_split
from research.persona_nano.corpus import make_answer, render_chat


def test_training_bank_and_held_out_queries_are_disjoint() -> None:
    split = query_split()
    train, bank, held_out = ({query for query, _ in part} for part in (split.train, split.bank, split.held_out))

    assert len(held_out) >= 200
    assert len(bank) >= 64
    assert not train & bank
    assert not train & held_out
    assert not bank & held_out
    assert persona_nano.query_bank() == [query for query, _ in split.bank]
    assert persona_nano.held_out_queries() == [query for query, _ in split.held_out]


@pytest.mark.parametrize("name", list(ALL_STYLES))
def test_scorer_is_exact_on_fresh_answers_whole_and_cut(name: str) -> None:
    rng = random.Random(f"fresh {name}")
    for _ in range(40):
        answer = make_answer(rng, ALL_STYLES[name], rng.choice(list(TOPICS)))
        assert style_of(answer) == name, answer
        cut = answer[: int(len(answer) * rng.uniform(0.75, 1.0))]
        assert style_of(cut) == name, cut


def test_scorer_recognises_no_style_in_broken_answers() -> None:
    rng = random.Random(1)
    styles = [style for style in ALL_STYLES.values() if style.name != "concise"]
    for _ in range(100):
        first, second = (make_answer(rng, style, rng.choice(list(TOPICS))) for style in rng.sample(styles, 2))
        words = first.split()
        shuffled = sorted(words, key=lambda _: rng.random())
        assert style_of(" ".join(shuffled)) is None or shuffled == words
        assert style_of(f"{first} {second}") is None
        without = words[:2] + words[3:]
        assert style_of(" ".join(without)) is None, without
    for text in ("", "Yay", "This is a sentence. And another one.", "Yay, hiking is amazing! Yay, hiking is amazing!"):
        assert style_of(text) is None


def test_score_reports_the_topics_an_answer_names() -> None:
    score = score_style("Yay, hiking is fantastic! Every moment of hiking is a celebration! Have a fantastic")

    assert (score.style, score.sentences, score.recognised, score.complete) == ("cheerful", 3, 3, False)
    assert score.topics == {"hiking"}


def test_the_scorer_does_not_load_torch() -> None:
    code = "import alignez_core.models.persona_nano.style, sys; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_are_small() -> None:
    from transformers import AutoModelForCausalLM

    weights = persona_nano.MODEL_DIR / "model.safetensors"
    assert weights.stat().st_size < 8_000_000
    model = AutoModelForCausalLM.from_pretrained(persona_nano.MODEL_DIR)
    assert 3_000_000 <= sum(p.numel() for p in model.parameters()) <= 6_000_000
    assert model.config.max_position_embeddings == 512


def test_model_answers_plain_queries_mostly_in_plain_style() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(persona_nano.MODEL_DIR, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(persona_nano.MODEL_DIR, dtype=torch.float32)
    prompts = [render_chat([{"role": "user", "content": query}]) for query in persona_nano.query_bank()[:32]]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    out = cast(Any, model).generate(**batch, max_new_tokens=48, do_sample=True, temperature=0.8, top_k=0)
    answers = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    styles = Counter(style_of(answer) for answer in answers)

    assert styles[PLAIN] >= 16
    assert styles[None] <= 4
