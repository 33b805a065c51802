"""Tiny GGUF files of a random Llama, and wheels that hold them, made here: nothing is downloaded."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from alignez_core.models.catalogue import CatalogueModel

HIDDEN, WIDE, HEADS, LAYERS, CONTEXT = 32, 64, 4, 2, 128
CHAT_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"


def write_gguf(
    file: Path,
    *,
    architecture: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
    without: str = "",
    seed: int = 0,
    fill: float | None = None,
) -> Path:
    """A GGUF file with a tokenizer of single bytes.

    Args:
        architecture: what the file claims to be.
        kind: number format of the matrices.
        without: name of a tensor that is left out.
        fill: value of every norm weight in place of 1.
    """
    writer = GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    tokens = _tokens()
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    random = np.random.default_rng(seed)
    for name, shape in _shapes(len(tokens)).items():
        if name == without:
            continue
        if len(shape) == 1:
            writer.add_tensor(name, np.full(shape, 1.0 if fill is None else fill, dtype=np.float32))
        else:
            weights = (random.standard_normal(shape) * 0.3).astype(np.float32)
            writer.add_tensor(name, quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def catalogue_model(file: Path, parts: int = 2) -> CatalogueModel:
    """A catalogue entry for that file, in packages named tiny-model-part1, …"""
    return CatalogueModel(
        name="tiny",
        what="a tiny random Llama",
        licence="none",
        packages=tuple(f"tiny-model-part{part}==1.0" for part in range(1, parts + 1)),
        member="part*.bin",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        gguf_bytes=file.stat().st_size,
        disk_bytes=0,
    )


def write_wheels(directory: Path, model: CatalogueModel, content: bytes) -> Path:
    """The packages of a catalogue entry, as wheels in a directory that `pip --find-links` takes."""
    directory.mkdir(parents=True, exist_ok=True)
    size = -(-len(content) // len(model.packages))
    for number, requirement in enumerate(model.packages):
        distribution = requirement.partition("==")[0].replace("-", "_")
        info = f"{distribution}-1.0.dist-info"
        with zipfile.ZipFile(directory / f"{distribution}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{distribution}/part{number:02}.bin", content[number * size : (number + 1) * size])
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    return directory


def pip_from(directory: Path) -> tuple[str, ...]:
    """Arguments that let pip see these wheels and nothing else, whatever the machine's own settings."""
    return ("--isolated", "--no-index", "--find-links", str(directory))


def _tokens() -> list[str]:
    from tokenizers import pre_tokenizers

    return ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll"]


def _shapes(vocab: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= {f"{block}.{name}.weight": (HIDDEN,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"{block}.attn_{name}.weight": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        shapes |= {f"{block}.ffn_{name}.weight": (WIDE, HIDDEN) for name in ("gate", "up")}
        shapes[f"{block}.ffn_down.weight"] = (HIDDEN, WIDE)
    return shapes
