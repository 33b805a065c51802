"""Engines over Llamas with random weights, made in memory: for measurements on a machine that has no model.

Imports torch, transformers and what they bring, nothing else.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from alignez_core.engines.slots.engine import TransformersEngine

#: Shape → hidden size, layers, heads, intermediate size, vocabulary, context.
SHAPES = {"7b": (4096, 32, 32, 11008, 32000, 1024), "tiny": (64, 5, 4, 128, 512, 1024)}


def random_llama(shape: str, device: str) -> PreTrainedModel:
    """A model in bfloat16 (float32 on the CPU), made on the device: its weights never pass through the CPU's memory."""
    hidden, layers, heads, intermediate, vocabulary, context = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=context,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)
    return model


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of one word per id, "<17>" for 17; other words are "<0>"."""
    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(vocabulary)}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def random_engine(shape: str, device: str, max_slots: int, *, compile: bool = False) -> TransformersEngine:
    """An engine over a random model, with `word_tokenizer` and no end of sequence."""
    vocabulary = SHAPES[shape][4]
    tokenizer = word_tokenizer(vocabulary)
    return TransformersEngine.from_model(
        random_llama(shape, device),
        tokenizer,
        f"random {shape}",
        name=f"random-{shape}",
        max_slots=max_slots,
        compile=compile,
    )


def weight_bytes(shape: str, device: str) -> int:
    """Bytes of weights that a step reads: all but the input embeddings, of which it reads one row per token."""
    hidden, layers, _, intermediate, vocabulary, _ = SHAPES[shape]
    block = 4 * hidden * hidden + 3 * hidden * intermediate + 2 * hidden
    return (layers * block + hidden + vocabulary * hidden) * (4 if device == "cpu" else 2)


def cache_bytes(shape: str, device: str, rows: int, length: float) -> float:
    """Bytes of keys and values that a step reads for rows of this mean length."""
    hidden, layers = SHAPES[shape][:2]
    return rows * length * layers * 2 * hidden * (4 if device == "cpu" else 2)
