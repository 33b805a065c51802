"""vLLM's own model classes with editable sites; nothing of their computation is written again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.gemma import GemmaForCausalLM
from vllm.model_executor.models.gemma2 import Gemma2ForCausalLM
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.utils import PPMissingLayer

from alignez_core.engines.vllm.device import edited_mlp
from alignez_core.engines.vllm.settings import EditSettings


class EditableModel:
    """Mixed into a `…ForCausalLM`: puts `EditedMlp`s at the edit sites of the decoder layers that this worker holds.

    Under tensor parallelism an MLP's output is replicated after its all-reduce, so every rank computes the same edit.
    """

    alignez: edited_mlp.StepState | None = None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)  # type: ignore[call-arg]
        settings = EditSettings.of(vllm_config.additional_config)
        if settings is None:
            return
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        from alignez_core.engines.vllm.device import runner_v1

        runner_v1.install(GPUModelRunner)
        device = torch.device(vllm_config.device_config.device)
        self.alignez = edited_mlp.StepState(vllm_config.scheduler_config.max_num_batched_tokens, settings.slots, device)
        width = vllm_config.model_config.get_hidden_size()
        for layer, block in enumerate(self._blocks()):
            if not isinstance(block, PPMissingLayer):
                edited_mlp.install(_site(block), layer, self.alignez, settings.rank, width)

    def _blocks(self) -> nn.ModuleList:
        return self.model.layers  # type: ignore[attr-defined, no-any-return]

    def alignez_mlps(self) -> dict[int, edited_mlp.EditedMlp]:
        """Layer → editable site, of the layers that this worker holds."""
        held = ((i, block) for i, block in enumerate(self._blocks()) if not isinstance(block, PPMissingLayer))
        found = ((i, _site(block)) for i, block in held)
        return {i: site for i, site in found if isinstance(site, edited_mlp.EditedMlp)}

    @classmethod
    def get_model_state_cls(cls) -> type:
        """Asked by vLLM's second model runner only."""
        from alignez_core.engines.vllm.device.runner_v2 import EditingModelState

        return EditingModelState


def _site(block: nn.Module) -> nn.Module:
    """The module whose output the block adds to the residual stream; Gemma 2 and 3 norm what their MLP made."""
    norm = getattr(block, "post_feedforward_layernorm", None)
    site: nn.Module = block.mlp if norm is None else norm  # type: ignore[assignment]
    return site


class EditedLlamaForCausalLM(EditableModel, LlamaForCausalLM):
    pass


class EditedMistralForCausalLM(EditableModel, MistralForCausalLM):
    pass


class EditedQwen2ForCausalLM(EditableModel, Qwen2ForCausalLM):
    pass


class EditedQwen3ForCausalLM(EditableModel, Qwen3ForCausalLM):
    pass


class EditedGemmaForCausalLM(EditableModel, GemmaForCausalLM):
    pass


class EditedGemma2ForCausalLM(EditableModel, Gemma2ForCausalLM):
    pass


class EditedGemma3ForCausalLM(EditableModel, Gemma3ForCausalLM):
    pass
