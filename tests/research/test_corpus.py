"""persona-nano's corpus: drawn alike from a seed, as varied as it must be, and free of what is measured on."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Sequence

from transformers import AutoTokenizer

from alignez_core.models import persona_nano
from alignez_core.models.persona_nano.styles import ALL_STYLES, PAIRS, STYLES
from alignez_core.models.persona_nano.topics import HELD_OUT_TEMPLATES, QUERY_TEMPLATES, TOPICS
from alignez_core.prompts import ChatFormat, Message, PlainFormat
from research.persona_nano.corpus import Generator, make_answer, render_chat
from research.persona_nano.train import build_model, train_tokenizer


def test_two_generators_of_one_seed_draw_the_same_documents() -> None:
    first, second, other = (list(Generator(seed).documents(300)) for seed in (3, 3, 4))

    assert first == second
    assert first != other


def test_the_corpus_is_as_large_and_varied_as_the_design_says() -> None:
    rng = random.Random(0)

    assert len(TOPICS) >= 60
    assert len(PAIRS) == 8
    assert len(STYLES) == 16
    for style in ALL_STYLES.values():
        assert len({make_answer(rng, style, "skating") for _ in range(100)}) >= 12, style.name


def test_no_document_holds_a_held_out_query_or_template() -> None:
    text = "\n".join(d.prompt + d.answer for d in Generator(9).documents(4000))

    assert not [query for query in persona_nano.held_out_queries() if query in text]
    for template in HELD_OUT_TEMPLATES:
        assert template in QUERY_TEMPLATES
        assert template.split("{t}")[0] not in text


def test_every_style_opens_with_words_of_its_own() -> None:
    owners: dict[str, set[str]] = {}
    for style in ALL_STYLES.values():
        for opener in style.openers:
            owners.setdefault(" ".join(opener.split()[:2]), set()).add(style.name)

    assert not {start: names for start, names in owners.items() if len(names) > 1}


def test_the_corpus_is_that_of_the_training() -> None:
    """The shipped weights were trained on it; the digest is of the documents as they were drawn then."""
    digest = hashlib.sha256()
    for document in Generator(0).documents(5000):
        digest.update(f"{document.prompt}\0{document.answer}\1".encode())
    assert digest.hexdigest() == "ca92ef0d6c71fcbfbc433cf379ecff8a6b9f82c7c49a9c6cdd481f3015b525c3"


def test_the_corpus_does_not_load_torch() -> None:
    code = "import research.persona_nano.corpus, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_corpus_renders_chats_as_the_shipped_tokenizer_does() -> None:
    tokenizer = AutoTokenizer.from_pretrained(persona_nano.MODEL_DIR)
    messages = [
        {"role": "system", "content": "You are a formal assistant."}, {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Is ünïcode ✓ fine?"},
    ]  # fmt: skip

    def template(turns: Sequence[Message]) -> str:
        plain = [dict(turn) for turn in turns]
        return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))

    chat = ChatFormat(template)
    assert chat.render(messages) == render_chat(messages)
    for text in (chat.render(messages), PlainFormat().render(messages)):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_training_starts_from_a_model_of_the_shipped_shape() -> None:
    tokenizer = train_tokenizer(seed=0, documents=300)
    model = build_model(tokenizer)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (8, 192)
    assert tokenizer.decode(tokenizer("Ahoy, ünïcode ✓")["input_ids"]) == "Ahoy, ünïcode ✓"
