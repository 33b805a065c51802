"""Finds the edit site of each decoder block: the module whose output its MLP adds to the residual stream.

Where a block norms its MLP's output before adding it (Gemma 2 and 3, OLMo 2, GLM 4), the site is that norm. Some
models scale the site's output by a constant when they add it (Granite); `residual_factor` is that constant.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from alignez_core.errors import UnknownArchitecture

_LLAMA = "model.layers.{layer}.mlp"
_NORMED = "model.layers.{layer}.post_feedforward_layernorm"
_GPT = "transformer.h.{layer}.mlp"
#: Name of the setting and of the argument: a module path with "{layer}" in it.
_SETTING = "ALIGNEZ_MLP_PATH (mlp_path in code)"

#: By the configuration's `model_type`: architectures that a parity test covers, so that no self-check runs for them.
#: OPT has no MLP module; `fc2` computes what its MLP adds to the residual.
MLP_PATHS: dict[str, str] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _NORMED,
    "gemma3_text": _NORMED,
    "phi": _LLAMA,
    "gpt2": _GPT,
    "gpt_neo": _GPT,
    "gpt_neox": "gpt_neox.layers.{layer}.mlp",
    "opt": "model.decoder.layers.{layer}.fc2",
}

#: Where the decoder blocks of other models may be, and the names of sites in a block, norms of the MLP's output first.
_BLOCKS = (
    "model.layers.{layer}",
    "model.language_model.layers.{layer}",
    "transformer.h.{layer}",
    "transformer.blocks.{layer}",
    "gpt_neox.layers.{layer}",
)
_SITES = ("post_feedforward_layernorm", "post_mlp_layernorm", "mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")


def mlp_path(model_type: str, override: str | None = None) -> str:
    """The site's module path in block `{layer}` of a listed model type, or the override.

    Raises: UnknownArchitecture: the type is not in the table and there is no override.
    """
    path = override or MLP_PATHS.get(model_type)
    if path is None:
        raise _not_found(model_type)
    if "{layer}" not in path:
        raise UnknownArchitecture(f'{_SETTING} {path!r} does not contain "{{layer}}", as in "{_LLAMA}"')
    return path


def candidate_paths(model: nn.Module, override: str | None = None) -> list[str]:
    """Paths at which the site may be, the most likely first; one only for a listed model type or an override.

    Args:
        model: a Hugging Face causal language model.
    Raises: UnknownArchitecture: no known module is where the model's blocks could be.
    """
    config: PreTrainedConfig = model.config  # type: ignore[assignment]
    if override or config.model_type in MLP_PATHS:
        return [mlp_path(config.model_type, override)]
    modules = {name for name, _ in model.named_modules()}
    places = [f"{block}.{site}" for block in _BLOCKS for site in _SITES]
    # The last block, because the first of some mixture models is dense.
    last = int(config.get_text_config().num_hidden_layers) - 1
    found = [path for path in places if {path.format(layer=0), path.format(layer=last)} <= modules]
    if not found:
        raise _not_found(config.model_type)
    return found


def find_mlp_modules(model: nn.Module, n_layers: int, path: str) -> list[nn.Module]:
    """The site of each of the model's blocks, in layer order.

    Raises: UnknownArchitecture: a path does not lead to a module.
    """
    return [_module(model, path.format(layer=layer)) for layer in range(n_layers)]


def find_blocks(model: nn.Module, n_layers: int, path: str) -> list[nn.Module]:
    """The decoder block that holds each site, in layer order; its output is the residual stream after it.

    A block's output is a tensor (B, T, D), or a tuple that begins with one: `output_tensor` takes either.

    Args:
        path: the site's, with "{layer}".
    Raises: UnknownArchitecture: a path does not lead to a module.
    """
    before, after = path.split("{layer}", 1)
    # What follows the first dot behind the index is inside the block; a suffix of the index itself is not.
    block = before + "{layer}" + after.split(".", 1)[0]
    return [_module(model, block.format(layer=layer)) for layer in range(n_layers)]


def residual_factor(config: PreTrainedConfig) -> float:
    """By how much a block scales the site's output when it adds it to the residual stream; 1 for most models."""
    return float(getattr(config.get_text_config(), "residual_multiplier", None) or 1.0)


def output_tensor(output: Any) -> Tensor:
    """A module's output; of several the first (mixtures of experts may return their router's logits beside)."""
    tensor: Tensor = output[0] if isinstance(output, tuple | list) else output
    return tensor


def with_output_tensor(output: Any, tensor: Tensor) -> Any:
    """A module's output with its tensor replaced."""
    return type(output)((tensor, *output[1:])) if isinstance(output, tuple | list) else tensor


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise UnknownArchitecture(
            f"{type(model).__name__} has no module {name}; set {_SETTING} to where its blocks keep their MLP, "
            f'for example "{_LLAMA}"'
        ) from None


def _not_found(model_type: str) -> UnknownArchitecture:
    return UnknownArchitecture(
        f"the MLP modules of model type {model_type!r} are not known (looked for {', '.join(_BLOCKS)}, each with "
        f"{', '.join(_SITES)}, as {_LLAMA} in Llama); "
        f'set {_SETTING} to the module path of one block\'s MLP, for example "{_LLAMA}"'
    )
