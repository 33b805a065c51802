"""Loads a causal language model and its tokenizer from a directory or a hub id; errors are one line."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from alignez_core.engines.common.dtypes import DTYPES, choose_dtype
from alignez_core.errors import InvalidInput, ModelNotFound, OutOfMemory

#: Entries of config.json that say who wrote it, not what the model computes.
_NOT_CONTENT = ("_name_or_path", "transformers_version")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with what describes it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    revision: str | None


@dataclass(frozen=True)
class ModelFiles:
    """Location and tokenizer of a model that another library loads.

    Args:
        source: what loads it, a directory's path or a hub id.
        directory: the path, or None for a hub id.
    """

    source: str
    directory: Path | None
    revision: str | None
    tokenizer: PreTrainedTokenizerBase

    def resolved(self) -> tuple[str, str | None]:
        """(fingerprint, commit) once the files are on this machine."""
        if self.directory is not None:
            return fingerprint(self.directory), None
        config = AutoConfig.from_pretrained(self.source, revision=self.revision)
        commit = getattr(config, "_commit_hash", None) or self.revision
        return fingerprint(_snapshot(self.source, self.revision, config)), commit


def locate(path: str | Path, revision: str | None = None) -> ModelFiles:
    """The model at `path`, a directory or a Hugging Face id, without its weights; remote code never runs.

    Raises: ModelNotFound: no such directory, or no usable tokenizer in it.
    """
    name = str(path)
    directory = Path(name).expanduser()
    is_local = directory.is_dir()
    if not is_local and (directory.is_absolute() or name.startswith((".", "~")) or not name):
        raise ModelNotFound(f"no model directory at {name!r}; {_ADVICE}")
    if is_local and not (directory / "config.json").is_file():
        raise ModelNotFound(f"{name} has no config.json; {_ADVICE}")
    source = str(directory) if is_local else name
    return ModelFiles(source, directory if is_local else None, revision, _load_tokenizer(source, revision))


def load_model(path: str | Path, device: str, dtype: str, revision: str | None = None) -> LoadedModel:
    """The model at `path`, a directory or a Hugging Face id; remote code never runs.

    Args:
        dtype: float32, bfloat16 or float16; "auto" is what suits model and device (`dtypes.choose_dtype`).
        revision: commit or tag of a hub id; a directory has none.
    Raises: ModelNotFound: anything missing or damaged, with one line that says what to set.
        InvalidInput: unknown dtype or device. OutOfMemory.
    """
    transformers_logging.disable_progress_bar()
    files = locate(path, revision)
    dtype = choose_dtype(dtype, _load_config(files.source, revision), device)
    model = _load_weights(files.source, DTYPES[dtype], revision)
    try:
        nn.Module.to(model, torch.device(device))  # in place; transformers 5 wraps its own `to` without types
        model.eval()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{path} does not fit on {device} as {dtype}") from error
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput("device", f"{device!r} cannot be used: {_one_line(error)}") from error
    if files.directory is not None:
        return LoadedModel(model, files.tokenizer, fingerprint(files.directory), None)
    commit = getattr(model.config, "_commit_hash", None) or revision
    return LoadedModel(model, files.tokenizer, fingerprint(_snapshot(str(path), revision, model.config)), commit)


def fingerprint(directory: Path) -> str:
    """SHA-256 over the configuration's content and every weight file, by name and content."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    content = {key: value for key, value in config.items() if key not in _NOT_CONTENT}
    sha = hashlib.sha256(b"alignez-model-1")
    sha.update(json.dumps(content, sort_keys=True).encode())
    for pattern in _WEIGHTS:
        files = sorted(directory.glob(pattern))
        for file in files:
            stat = file.stat()
            sha.update(f"{file.name}:{_file_sha256(file, stat.st_size, stat.st_mtime_ns)}".encode())
        if files:
            break
    return sha.hexdigest()


def context_length(config: PreTrainedConfig) -> int:
    """Tokens that the model's positions reach.

    Rotary scalings that change with the longest row of a batch ("dynamic", "longrope") are used up to their original
    length only: beyond it one request would change another's result.
    """
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if not length:
        raise ModelNotFound(f"config.json of this {config.model_type} model states no max_position_embeddings; set it")
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        length = rope.get("original_max_position_embeddings") or length
    return int(length)


_ADVICE = "set the model (--model, ALIGNEZ_MODEL) to a directory with config.json, weights and tokenizer, or a hub id"


def _load_tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever the broken file led to
        raise ModelNotFound(f"no usable tokenizer in {source} ({_one_line(error)}); {_ADVICE}") from error
    # A missing tokenizer file can give an empty tokenizer instead of an error (transformers 5.23).
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.encode("a", add_special_tokens=False):
        raise ModelNotFound(f"the tokenizer in {source} has no vocabulary; {_ADVICE}")
    return tokenizer


def _load_config(source: str, revision: str | None) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelNotFound(f"cannot load a model from {source} ({_one_line(error)}); {_ADVICE}") from error
    return config


def _load_weights(source: str, dtype: torch.dtype, revision: str | None) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{source} does not fit in memory") from error
    except SafetensorError as error:
        raise ModelNotFound(f"the weights in {source} are damaged ({_one_line(error)}); copy them again") from error
    except Exception as error:
        raise ModelNotFound(f"cannot load a model from {source} ({_one_line(error)}); {_ADVICE}") from error
    model: PreTrainedModel = loaded[0]
    report = loaded[1]
    # transformers fills missing weights with random numbers and only warns.
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        raise ModelNotFound(
            f"the weights in {source} lack {len(absent)} tensors of the model, first {absent[0]}; copy them again"
        )
    return model


def _snapshot(name: str, revision: str | None, config: PreTrainedConfig) -> Path:
    from huggingface_hub import snapshot_download

    commit = getattr(config, "_commit_hash", None) or revision
    return Path(snapshot_download(name, revision=commit, local_files_only=True))


@lru_cache(maxsize=256)
def _file_sha256(file: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file; size and time are part of the key, so a changed file is read again."""
    # The hub's cache names large files by their SHA-256 already.
    blob = file.resolve().name
    if file.is_symlink() and _SHA256.fullmatch(blob):
        return blob
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:197]}..."
