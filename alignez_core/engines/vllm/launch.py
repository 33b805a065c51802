"""From a model's directory to a running `AsyncLLM`: what it is, whether it can be edited, and vLLM's start."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from vllm import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from alignez_core.engines.base import EngineInfo, SamplingDefaults
from alignez_core.engines.common.loading import ModelFiles, context_length, locate
from alignez_core.engines.common.tokens import PromptFormatName, TextTokens, eos_ids
from alignez_core.engines.vllm import core_process, plugin
from alignez_core.engines.vllm.loop_thread import LoopThread
from alignez_core.engines.vllm.settings import EditSettings
from alignez_core.errors import AlignezError, ModelNotFound, UnknownArchitecture
from alignez_core.prompts import PromptFormat

_EXTENSION = "alignez_core.engines.vllm.device.worker_extension.AlignezWorker"


@dataclass(frozen=True)
class EditableFiles:
    """A model on disk whose architecture the plugin can edit."""

    files: ModelFiles
    revision: str | None
    config: PreTrainedConfig
    tokens: TextTokens
    prompt_format: PromptFormat
    sampling_defaults: SamplingDefaults

    @classmethod
    def read(cls, path: str | Path, revision: str | None, prompt_format: PromptFormatName) -> EditableFiles:
        """Raises: ModelNotFound, UnknownArchitecture; InvalidInput: it has no such prompt format."""
        files = locate(path, revision)
        config = AutoConfig.from_pretrained(files.source, revision=revision)
        architecture = (config.architectures or ["none"])[0]
        if architecture not in plugin.ARCHITECTURES:
            raise UnknownArchitecture(
                f"{architecture} cannot be edited in vLLM; there are {', '.join(plugin.ARCHITECTURES)}. "
                "TransformersEngine knows more"
            )
        vocab_size = int(config.get_text_config().vocab_size)
        generation = _generation(files)
        tokens = TextTokens(files.tokenizer, vocab_size, eos_ids(files.tokenizer, config, generation))
        defaults = SamplingDefaults.of(generation)
        return cls(files, revision, config, tokens, tokens.format(prompt_format), defaults)

    def vllm_arguments(self, dtype: str, settings: EditSettings) -> dict[str, Any]:
        """Arguments of `AsyncEngineArgs` for the model and the plugin."""
        return {
            "model": self.files.source,
            "revision": self.revision,
            "dtype": dtype,
            "max_model_len": context_length(self.config),
            "seed": secrets.randbelow(2**31),
            "worker_extension_cls": _EXTENSION,
            "additional_config": settings.to_additional_config() if settings.slots else {},
            "generation_config": "vllm",
            "disable_log_stats": True,
        }

    def info(self, name: str, dtype: str, llm: AsyncLLM) -> EngineInfo:
        """The facts that others plan with."""
        text = self.config.get_text_config()
        fingerprint, commit = self.files.resolved()
        return EngineInfo(
            name=name,
            fingerprint=fingerprint,
            n_layers=int(text.num_hidden_layers),
            hidden_size=int(text.hidden_size),
            vocab_size=int(text.vocab_size),
            context_length=context_length(self.config),
            dtype=dtype,
            device=str(llm.vllm_config.device_config.device_type),
            prompt_format=self.prompt_format.name,
            revision=commit,
            sampling_defaults=self.sampling_defaults,
        )


def launch(arguments: dict[str, Any]) -> tuple[LoopThread, AsyncLLM]:
    """Starts vLLM on a loop of its own. Raises: ModelNotFound: it does not start with this model."""
    plugin.register()
    core_process.install()
    loop = LoopThread()
    try:
        return loop, loop.run(_start(AsyncEngineArgs(**arguments)))
    except BaseException as error:
        loop.close()
        if isinstance(error, AlignezError | KeyboardInterrupt):
            raise
        model = arguments["model"]
        raise ModelNotFound(f"vLLM cannot start with {model}: {type(error).__name__}: {error}") from error


async def _start(args: AsyncEngineArgs) -> AsyncLLM:
    return AsyncLLM.from_engine_args(args)


def _generation(files: ModelFiles) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(files.source)
    except OSError:
        return None  # a model need not have one
