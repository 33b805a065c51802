"""Conversion of a GGUF file into a Hugging Face directory, which both engines can load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from alignez_core.errors import ModelNotFound, brief
from alignez_core.models.gguf_header import GGUFHeader, read_header

_OTHER = "give a model directory or a hub id instead"


def convert(file: Path, target: Path) -> None:
    """Writes the model of a GGUF file to `target`: weights, config, generation config, tokenizer and chat template.

    The weights become bfloat16: finer than every quantisation, coarser than a GGUF file's float16 and float32 tensors.
    Needs the packages gguf and accelerate (transformers 5.23).

    Args:
        file: a GGUF file of a causal language model with an architecture that transformers can read.
        target: an empty directory. After an error it may contain parts of the model.
    Raises: ModelNotFound: the file is damaged or truncated, or its architecture or quantisation is not supported; the
        message is one line with file, reason and remedy. OSError: `target` cannot be written.
    """
    header = read_header(file)
    tokenizer = _load_tokenizer(file, header)
    model = _load_weights(file, header)
    _check_finite(file, model)
    _save(model, tokenizer, target)


def _load_tokenizer(file: Path, header: GGUFHeader) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    with _unreadable(file, header, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.encode("a", add_special_tokens=False):
        raise ModelNotFound(f"{file} has no usable tokenizer; {_OTHER}")
    return tokenizer


def _load_weights(file: Path, header: GGUFHeader) -> Any:
    """The model in bfloat16. Raises: ModelNotFound: the file lacks a tensor of the architecture, or is unreadable."""
    import torch
    import transformers

    # With the package `kernels`, transformers 5.19 and 5.23 keep weights packed unless told to dequantise.
    packed = getattr(transformers, "GgufConfig", None)
    settings = {"quantization_config": packed(dequantize=True)} if packed is not None else {}
    with _unreadable(file, header, "model"), _no_progress_bars():
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.bfloat16, output_loading_info=True, **settings
        )
        model, report = loaded
    absent = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    if absent:  # transformers initialises them with random numbers
        raise ModelNotFound(f"{file} lacks {len(absent)} tensors of the model, first {absent[0]}; {_OTHER}")
    return model


def _check_finite(file: Path, model: Any) -> None:
    """Raises: ModelNotFound: infinity or NaN, the effect of a damaged scale. Only a checksum detects other damage."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ModelNotFound(
                f"{file} is damaged: tensor {name} holds infinity or NaN; download or copy the file again"
            )


def _save(model: Any, tokenizer: Any, target: Path) -> None:
    """Writes the directory. The model's own `save_pretrained` refuses dequantised weights (transformers 5.23)."""
    from safetensors.torch import save_file

    tokenizer.save_pretrained(target)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures, config.dtype = [type(model).__name__], "bfloat16"
    config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if config.get_text_config().tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # safetensors 0.8 writes mode 0600


@contextmanager
def _unreadable(file: Path, header: GGUFHeader, part: str) -> Iterator[None]:
    """Converts all errors of transformers about an unreadable file into ModelNotFound."""
    try:
        yield
    except ImportError as error:
        raise ModelNotFound(
            f"{file} cannot be read: {brief(error)}; pip install -c constraints.txt gguf accelerate"
        ) from error
    except Exception as error:
        raise ModelNotFound(
            f"{file} cannot be used: transformers reads no {part} from GGUF architecture {header.architecture!r} "
            f"({brief(error)}); {_OTHER}"
        ) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Disables progress bars on stderr. transformers 5.23 has no setting for the one of its loop over tensors."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    loop: Any = modeling_gguf_pytorch_utils
    logging.disable_progress_bar()
    drawn = loop.tqdm
    loop.tqdm = partial(drawn, disable=True)
    try:
        yield
    finally:
        loop.tqdm = drawn
