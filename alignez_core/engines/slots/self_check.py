"""Proves on a few tokens that a model of an unlisted architecture can be edited and computes the same over slots.

Two statements: adding a vector at the edit site adds it, times a known factor, to the block's output; and prefill plus
decode over the engine's slots give the logits of one plain pass. What does not hold is refused in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignez_core.engines.slots import attention
from alignez_core.engines.slots.mlp_modules import find_blocks, find_mlp_modules, output_tensor, with_output_tensor
from alignez_core.engines.slots.runner import SlotRunner
from alignez_core.errors import AlignezError, OutOfMemory, UnknownArchitecture

#: Two rows of different length, so that the mask of a ragged step is part of the proof.
_TEXTS = ((1, 4, 2, 5, 3, 6), (3, 1, 2))
_DECODED = 2
#: Kinds of layer whose state is one key and one value per token and head.
_SLOT_LAYERS = frozenset({"full_attention", "sliding_attention"})
_NO_SETTING = "no setting changes that"


def prove(model: PreTrainedModel, n_layers: int, paths: Sequence[str], factor: float) -> str:
    """The path of the edit site, after both statements have held; the model's attention is the engine's from then on.

    Args:
        model: in evaluation mode, as transformers built it.
        paths: where to look for the site, module paths with "{layer}". factor: as `find_site`.
    Raises: UnknownArchitecture: a statement does not hold.
    """
    try:
        path = find_site(model, n_layers, paths, factor)
        expected = _plain_logits(model)
        window_counts = _window_counts(model, expected)
    except (AlignezError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a configuration that contradicts itself shows here first
        raise UnknownArchitecture(
            f"{type(model).__name__} does not run on a few tokens as transformers built it ({_one_line(error)})"
        ) from error
    runner = SlotRunner(model, find_mlp_modules(model, n_layers, path), len(_TEXTS), len(_TEXTS[0]) + 1)
    try:
        _compare(runner, expected, model, window_counts)
    finally:
        runner.close()
    return path


def refuse_layers_without_slots(model: PreTrainedModel) -> None:
    """Raises: UnknownArchitecture: a layer keeps another state than keys and values, or sees keys by another rule."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _SLOT_LAYERS
    if kinds:
        raise UnknownArchitecture(
            f"model type {model.config.model_type!r} has {' and '.join(sorted(kinds))} layers, and the engine's slots "
            f"hold the keys and values of full or sliding attention only; {_NO_SETTING}"
        )


def find_site(model: PreTrainedModel, n_layers: int, paths: Sequence[str], factor: float) -> str:
    """The first of these paths whose module's output is what the block adds to its residual stream.

    Args:
        paths: module paths with "{layer}", at least one. factor: what the block scales the output by as it adds it.
    Raises: UnknownArchitecture: none is; it says so of the last one tried.
    """
    refused: UnknownArchitecture | None = None
    for path in paths:
        try:
            _check_site(model, n_layers, path, factor)
        except UnknownArchitecture as error:
            refused = error
        else:
            return path
    raise refused or UnknownArchitecture("no module path was given to look for the MLP at")


def _plain_logits(model: PreTrainedModel) -> list[Tensor]:
    """(T, vocabulary) logits of each text, by the model as transformers built it."""
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([text], device=model.device)).logits[0] for text in _TEXTS]


def _window_counts(model: PreTrainedModel, expected: list[Tensor]) -> bool:
    """True when `sliding_window` of the configuration changes what the model computes; some carry it without use."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "layer_types", None):
        return False
    try:
        config.sliding_window = 2
        narrow = _plain_logits(model)
    finally:
        config.sliding_window = window
    return not torch.equal(narrow[0], expected[0])


def _compare(runner: SlotRunner, expected: list[Tensor], model: PreTrainedModel, window_counts: bool) -> None:
    """Compares slots with a plain pass.

    Args:
        expected: of `_plain_logits`. window_counts: of `_window_counts`.
    Raises: UnknownArchitecture: the logits differ, or would for longer texts.
    """
    own_attention = UnknownArchitecture(
        f"{type(model).__name__} computes its attention itself, not through transformers' attention interface, so it "
        f"cannot run over the engine's slots; {_NO_SETTING}"
    )
    try:
        with attention.witnessed() as calls:
            agree = _agree(runner, expected)
    except (OutOfMemory, torch.OutOfMemoryError, MemoryError):
        raise
    except AlignezError as error:
        raise UnknownArchitecture(f"{error}; {_NO_SETTING}") from error
    except Exception as error:  # a forward pass that wants another kind of cache raises what it likes
        if not calls and not model._supports_attention_backend:
            raise own_attention from error
        raise UnknownArchitecture(
            f"{type(model).__name__} does not run over the engine's slots ({_one_line(error)}); {_NO_SETTING}"
        ) from error
    config = model.config.get_text_config()
    if len(calls) < int(config.num_hidden_layers):
        raise own_attention
    if any(call.masked for call in calls):
        raise UnknownArchitecture(
            f"{type(model).__name__} makes attention masks of its own, which the engine's slots do not take; "
            f"{_NO_SETTING}"
        )
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window_counts else "full_attention"]
    if any(kind == "sliding_attention" and call.window is None for kind, call in zip(kinds, calls, strict=False)):
        raise UnknownArchitecture(
            f"{type(model).__name__} has sliding attention but does not pass its window to the attention interface, so "
            f"long texts would come out differently over the engine's slots; {_NO_SETTING}"
        )
    if not agree:
        raise UnknownArchitecture(
            f"the attention of {type(model).__name__} does not give the same result over the engine's slots; only its "
            "MLP path can be set, its attention must be of the usual causal kind"
        )


def _agree(runner: SlotRunner, expected: list[Tensor]) -> bool:
    prompts = [text[:-_DECODED] for text in _TEXTS]
    tolerance = 1e-3 if expected[0].dtype == torch.float32 else 0.1
    logits = runner.prefill(prompts, [None] * len(prompts))
    for step in range(_DECODED + 1):
        for row, text in enumerate(_TEXTS):
            plain = expected[row][len(text) - _DECODED - 1 + step].float()
            # Over the whole row, because half precision leaves single logits near zero wide open.
            if not float((logits[row].float() - plain).norm()) <= tolerance * float((plain - plain.mean()).norm()):
                return False
        if step < _DECODED:
            logits = runner.decode([text[len(text) - _DECODED + step] for text in _TEXTS])
    return True


def _check_site(model: PreTrainedModel, n_layers: int, path: str, factor: float) -> None:
    """Raises: UnknownArchitecture: adding a vector at a site does not add factor times it to the block's output."""
    sites, blocks = find_mlp_modules(model, n_layers, path), find_blocks(model, n_layers, path)
    calls = _block_calls(model, blocks)
    generator = torch.Generator().manual_seed(0)
    for layer, (site, block) in enumerate(zip(sites, blocks, strict=True)):
        if site is block or layer not in calls:
            raise _wrong_site(path, layer, factor)
        args, kwargs, before = calls[layer]
        size = float(before.float().square().mean().sqrt()) + 1.0
        vector = (torch.randn(before.shape[-1], generator=generator) * size).to(before)
        handle = site.register_forward_hook(_adds(vector))
        try:
            with torch.inference_mode():
                after = output_tensor(block(*args, **kwargs))
        except Exception as error:  # a site of another width than the block's
            raise _wrong_site(path, layer, factor) from error
        finally:
            handle.remove()
        change, wanted = (after - before).float(), (factor * vector).float().expand(before.shape)
        # Rounding of a sum, relative to its terms.
        rounding = 1e-4 if before.dtype == torch.float32 else 0.05
        if not torch.allclose(change, wanted, rtol=0.0, atol=rounding * size * max(1.0, factor)):
            raise _wrong_site(path, layer, factor)


def _block_calls(model: PreTrainedModel, blocks: Sequence[nn.Module]) -> dict[int, tuple[Any, Any, Tensor]]:
    """Arguments and returned tensor of each block in one pass over a text, by layer."""
    calls: dict[int, tuple[Any, Any, Tensor]] = {}

    def keep(layer: int) -> Callable[[nn.Module, Any, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls[layer] = (args, kwargs, output_tensor(output))

        return hook

    with ExitStack() as handles, torch.inference_mode():
        for layer, block in enumerate(blocks):
            handles.callback(block.register_forward_hook(keep(layer), with_kwargs=True).remove)
        model(input_ids=torch.tensor([_TEXTS[0]], device=model.device), use_cache=False)
    return calls


def _adds(vector: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
    return lambda module, args, output: with_output_tensor(output, output_tensor(output) + vector)


def _wrong_site(path: str, layer: int, factor: float) -> UnknownArchitecture:
    return UnknownArchitecture(
        f"the output of {path.format(layer=layer)} is not what its block adds to the residual stream (a vector added "
        f"there does not change the block's output by {factor:g} times it); set ALIGNEZ_MLP_PATH (mlp_path in code) to "
        "the module whose output is"
    )


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
