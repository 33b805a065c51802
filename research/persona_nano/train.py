"""Trains persona-nano on two cores: `python -m research.persona_nano.train --out DIR --minutes M --seed S`.

Tokenizer and model come from the generated corpus alone. The loss is computed on answers only, so the output layer
runs for their positions only. The learning rate follows the elapsed share of `--minutes`, so two runs with one seed see
the same documents but may take different numbers of steps.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignez_core.models.persona_nano.topics import query_split
from research.persona_nano.corpus import CHAT_TEMPLATE, END, PAD, ROLE_TOKENS, Document, Generator

VOCABULARY = 3072
CONTEXT = 512
_CHUNK = 6000  # documents that are drawn, sorted by length and batched together

Encoded = tuple[list[int], int]  # token ids, length of the prompt


def train_tokenizer(seed: int, documents: int = 20_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE (any text is encodable) with the chat template, trained on the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, *ROLE_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    specials = (PAD, END, *ROLE_TOKENS)

    def texts() -> Iterator[str]:
        for document in Generator(seed).documents(documents):
            text = document.prompt + document.answer
            for special in specials:
                text = text.replace(special, "\n")
            yield text

    tokenizer.train_from_iterator(texts(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLE_TOKENS),
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama: narrow attention and wide MLPs, because the MLPs are where profiles act."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.03,
    )
    return LlamaForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Endless batches: (ids, targets, flat indices of the predicting positions), right-padded rows of like length."""
    generator, rng = Generator(seed), random.Random(seed)
    while True:
        encoded = _encode(tokenizer, list(generator.documents(_CHUNK)))
        encoded.sort(key=lambda row: len(row[0]))
        groups: list[list[Encoded]] = [[]]
        for row in encoded:  # ascending, so the present row is the longest of its group
            if groups[-1] and (len(groups[-1]) + 1) * len(row[0]) > tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            yield _collate(group, int(tokenizer.pad_token_id))


def _encode(tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]) -> list[Encoded]:
    # Prompt and answer separately, so that their boundary is tokenized as at inference.
    prompts = tokenizer([d.prompt for d in documents], add_special_tokens=False)["input_ids"]
    answers = tokenizer([d.answer for d in documents], add_special_tokens=False)["input_ids"]
    return [(prompt + answer, len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]


def _collate(group: Sequence[Encoded], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in group)
    rows = torch.full((len(group), width), pad)
    predicting: list[int] = []
    for i, (ids, prompt_length) in enumerate(group):
        rows[i, : len(ids)] = torch.tensor(ids)
        predicting.extend(range(i * width + prompt_length - 1, i * width + len(ids) - 1))
    where = torch.tensor(predicting)
    return rows, rows.view(-1)[where + 1], where


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, seed: int, record: dict[str, float]
) -> None:
    """Writes the Hugging Face directory: float16 weights, tokenizer, generation defaults, query bank, record."""
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.half()
    half.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        max_new_tokens=48,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    half.save_pretrained(out)
    tokenizer.save_pretrained(out)
    bank = [query for query, _ in query_split().bank]
    (out / "query_bank.json").write_text(json.dumps(bank, indent=0) + "\n")
    (out / "training.json").write_text(json.dumps({"seed": seed, **record}, indent=1) + "\n")


def train(
    out: Path,
    minutes: float,
    seed: int,
    batch_tokens: int,
    peak_rate: float,
    weight_decay: float,
    resume: Path | None = None,
) -> None:
    """Trains for `minutes` of wall time; prints the loss and saves every five minutes."""
    torch.manual_seed(seed)
    if resume is None:
        tokenizer = train_tokenizer(seed)
        model = build_model(tokenizer)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(resume)
        model = LlamaForCausalLM.from_pretrained(resume, dtype=torch.float32)
        model.train()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, vocabulary {len(tokenizer)}", flush=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak_rate, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True
    )
    out.mkdir(parents=True, exist_ok=True)
    started = last_saved = time.monotonic()
    seen = step = 0
    mean_loss = math.nan
    for ids, targets, where in batches(tokenizer, seed + 1, batch_tokens):
        share = (time.monotonic() - started) / (60 * minutes)
        if share >= 1:
            break
        rate = peak_rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden.view(-1, hidden.shape[-1])[where])
        loss = functional.cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        seen += ids.numel()
        value = loss.item()
        mean_loss = value if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * value
        if step % 50 == 0:
            elapsed = time.monotonic() - started
            speed = f"tokens {seen} {seen / elapsed:.0f}/s {elapsed:.0f}s"
            print(f"step {step} loss {mean_loss:.4f} rate {rate:.5f} {speed}", flush=True)
        if time.monotonic() - last_saved > 300:
            save(model, tokenizer, out / "checkpoint", seed, {})
            last_saved = time.monotonic()
    record = {"minutes": minutes, "steps": step, "tokens": seen, "parameters": parameters}
    record["final_loss"] = round(mean_loss, 4)
    save(model, tokenizer, out, seed, record)
    print(f"saved {out} {record}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--resume", type=Path, help="directory of an earlier run to continue, with its tokenizer")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    args = parser.parse_args()
    train(args.out, args.minutes, args.seed, args.batch_tokens, args.rate, args.weight_decay, args.resume)


if __name__ == "__main__":
    main()
