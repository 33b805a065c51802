"""Finds the modules whose output is "the MLP output of decoder block l"."""

from __future__ import annotations

from torch import nn

from alignez_core.errors import UnknownArchitecture

_LLAMA = "model.layers.{layer}.mlp"
_GPT = "transformer.h.{layer}.mlp"
#: What an operator sets, and what code passes; it is a module path with "{layer}" in it.
_SETTING = "ALIGNEZ_MLP_PATH (mlp_path in code)"

#: By the configuration's `model_type`. OPT has no MLP module; `fc2` computes what its MLP adds to the residual.
MLP_PATHS: dict[str, str] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi": _LLAMA,
    "gpt2": _GPT,
    "gpt_neo": _GPT,
    "gpt_neox": "gpt_neox.layers.{layer}.mlp",
    "opt": "model.decoder.layers.{layer}.fc2",
}


def mlp_path(model_type: str, override: str | None = None) -> str:
    """The module path of the MLP of block `{layer}`.

    Raises: UnknownArchitecture: the type is not in the table and there is no override.
    """
    path = override or MLP_PATHS.get(model_type)
    if path is None:
        raise UnknownArchitecture(
            f"the MLP modules of model type {model_type!r} are not known (looked for {_LLAMA}, as in Llama); "
            f'set {_SETTING} to the module path of one block\'s MLP, for example "{_LLAMA}"'
        )
    if "{layer}" not in path:
        raise UnknownArchitecture(f'{_SETTING} {path!r} does not contain "{{layer}}", as in "{_LLAMA}"')
    return path


def find_mlp_modules(model: nn.Module, n_layers: int, path: str) -> list[nn.Module]:
    """The MLP module of each of the model's blocks, in layer order.

    Raises: UnknownArchitecture: a path does not lead to a module.
    """
    modules = []
    for layer in range(n_layers):
        name = path.format(layer=layer)
        try:
            modules.append(model.get_submodule(name))
        except AttributeError:
            raise UnknownArchitecture(
                f"{type(model).__name__} has no module {name}; set {_SETTING} to where its blocks keep their MLP, "
                f'for example "{_LLAMA}"'
            ) from None
    return modules
