"""The serving systems that `bench.engine.throughput` compares, each behind one call: rows in, greedy tokens out.

Timed is everything between: looking profiles up, stacking or loading their tables, scheduling. Models, compiled code
and adapters are loaded when a system is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine, GenerationRequest
from alignez_core.engines.slots.edits import low_rank_edit
from alignez_core.engines.slots.engine import TransformersEngine
from bench.engine.models import greedy, load


class Row(NamedTuple):
    """A prompt's token ids, the number of its profile or None, and the length of its answer."""

    prompt: list[int]
    profile: int | None
    tokens: int


@dataclass(frozen=True)
class Bench:
    """What all systems share."""

    directory: Path
    model: Any  #: the bare model, which no system may change
    plans: Mapping[str, Sequence[EditPlan]]  #: by method, the profiles, editing the answer
    everywhere: Sequence[EditPlan]  #: those of `alignez`, editing every position
    adapters: Sequence[Path]  #: the LoRA directory of each of `everywhere`
    concurrency: int  #: the largest number of rows that run at once
    compile: bool  #: False: vLLM's eager mode, which starts faster

    def requests(self, rows: Sequence[Row], plans: Sequence[EditPlan]) -> list[GenerationRequest]:
        """The rows for an engine of ours."""
        edits = [None if row.profile is None else plans[row.profile] for row in rows]
        return [
            GenerationRequest(row.prompt, row.tokens, 0.0, ignore_eos=True, edit=edit)
            for row, edit in zip(rows, edits, strict=True)
        ]


#: Of all three vLLM systems. No prefix cache, because prompts repeat from run to run.
_VLLM = {"max_num_batched_tokens": 4096, "max_model_len": 512, "use_tqdm_on_load": False}


class System(ABC):
    """One way to serve rows."""

    name: ClassVar[str]
    queues: ClassVar[bool] = False  #: takes any number of rows and keeps `concurrency` of them running, not one batch
    edits: ClassVar[Literal["answer", "all", "none"]] = "answer"  #: the positions that profiles change
    unsteered: ClassVar[str] = ""  #: the system whose run without profiles is this one's; "" is itself

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    @abstractmethod
    def run(self, rows: Sequence[Row], method: str = "alignez") -> list[list[int]]:
        """The new tokens of each row, in order."""

    def close(self) -> None:  # noqa: B027 (most have nothing to free)
        """Frees what the system holds."""

    def sample(self, profiles: int, requests: int) -> int:
        """Rows of one timed run. Rates are per token, so slow systems need not run all of them."""
        return requests if self.queues else min(requests, self.bench.concurrency)


class Transformers(System):
    """Our engine in this process."""

    name = "TransformersEngine"
    queues = True

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.engine = self._load()

    def _load(self) -> Engine:
        slots = self.bench.concurrency
        return TransformersEngine.load(self.bench.directory, dtype="float32", prompt_format="plain", max_slots=slots)

    def run(self, rows: Sequence[Row], method: str = "alignez") -> list[list[int]]:
        requests = self.bench.requests(rows, self.bench.plans[method])
        return [list(completion.token_ids) for completion in self.engine.generate(requests)]

    def close(self) -> None:
        self.engine.close()


class VLLM(Transformers):
    """Our engine over vLLM."""

    name = "VLLMEngine"
    slots: ClassVar[int | None] = None

    def _load(self) -> Engine:
        from alignez_core.engines.vllm.engine import VLLMEngine

        return VLLMEngine.load(
            self.bench.directory, "float32", max_running=self.bench.concurrency, slots=self.slots,
            prefix_caching=False, compile=self.bench.compile, prompt_format="plain", **_VLLM,
        )  # fmt: skip


class PlainVLLM(VLLM):
    """vLLM as it is: the same front end, no edited layers in the model."""

    name = "vLLM"
    slots = 0
    edits = "none"


class LoraVLLM(System):
    """vLLM's own multi-LoRA with all adapters in memory; vLLM does not compile it on a CPU."""

    name = "vLLM multi-LoRA"
    queues = True
    edits = "all"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self._llm = LLM(
            str(bench.directory), dtype="float32", max_num_seqs=bench.concurrency, enable_prefix_caching=False,
            generation_config="vllm", enforce_eager=not bench.compile, enable_lora=True,
            max_loras=min(bench.concurrency, len(bench.adapters)), max_cpu_loras=len(bench.adapters),
            max_lora_rank=8,  # the smallest that vLLM has above 1
            lora_target_modules=["down_proj"], **_VLLM,
        )  # fmt: skip
        self._adapters = [LoRARequest(path.name, i + 1, str(path)) for i, path in enumerate(bench.adapters)]
        for adapter in self._adapters:
            self._llm.llm_engine.add_lora(adapter)

    def run(self, rows: Sequence[Row], method: str = "alignez") -> list[list[int]]:
        from vllm import SamplingParams, TokensPrompt

        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=row.prompt) for row in rows],
            SamplingParams(temperature=0.0, max_tokens=rows[0].tokens, ignore_eos=True),
            use_tqdm=False,
            lora_request=[None if row.profile is None else self._adapters[row.profile] for row in rows],
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    def sample(self, profiles: int, requests: int) -> int:
        # It needs more than a batch only where there are more profiles than rows.
        return requests if profiles > self.bench.concurrency else min(requests, self.bench.concurrency)

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


class HuggingFace(System):
    """`generate` on one batch."""

    name = "Hugging Face generate"
    edits: ClassVar[Literal["answer", "all", "none"]] = "none"

    def run(self, rows: Sequence[Row], method: str = "alignez") -> list[list[int]]:
        return self._generate(self.bench.model, rows)

    def _generate(self, model: Any, rows: Sequence[Row], **arguments: Any) -> list[list[int]]:
        prompts = torch.tensor([row.prompt for row in rows])
        made = greedy(model, prompts, max(row.tokens for row in rows), **arguments).tolist()
        return [tokens[: row.tokens] for tokens, row in zip(made, rows, strict=True)]  # the rest is padding


class Hook(HuggingFace):
    """`generate` with a forward hook for each edited layer that holds the directions of every row."""

    name = "forward hook, per-row directions"
    edits = "answer"
    unsteered = HuggingFace.name

    def run(self, rows: Sequence[Row], method: str = "alignez") -> list[list[int]]:
        plans = [self.bench.plans[method][row.profile] for row in rows if row.profile is not None]
        tables = [torch.stack(t) for t in zip(*((p.U, p.V, p.c) for p in plans), strict=True)]
        with ExitStack() as handles:
            for i, layer in enumerate(plans[0].layers):
                mlp = self.bench.model.model.layers[layer].mlp
                handles.callback(mlp.register_forward_hook(_row_hook(*(t[:, i] for t in tables))).remove)
            return self._generate(self.bench.model, rows)


class Peft(HuggingFace):
    """PEFT's mixed-adapter batch (`adapter_names`), all adapters in memory."""

    name = "PEFT mixed-adapter batch"
    edits = "all"
    unsteered = HuggingFace.name

    def __init__(self, bench: Bench) -> None:
        from peft import PeftModel

        super().__init__(bench)
        first, *others = bench.adapters
        own = load(bench.directory)  # PEFT puts its layers into it
        self._model = PeftModel.from_pretrained(own, first, adapter_name=first.name)
        for path in others:
            self._model.load_adapter(path, adapter_name=path.name)

    def run(self, rows: Sequence[Row], method: str = "alignez") -> list[list[int]]:
        names = [self.bench.adapters[row.profile].name for row in rows if row.profile is not None]
        return self._generate(self._model, rows, adapter_names=names)


SYSTEMS: tuple[type[System], ...] = (
    HuggingFace, Hook, Peft, Transformers, VLLM, PlainVLLM, LoraVLLM,
)  # fmt: skip


def _row_hook(u: Tensor, v: Tensor, c: Tensor) -> Callable[[Any, Any, Tensor], Tensor]:
    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        # Prompts have one length, so the answer begins in the last column of the first pass.
        edited = low_rank_edit(output[:, -1:].float(), u, v, c).to(output.dtype)
        return edited if output.shape[1] == 1 else torch.cat((output[:, :-1], edited), dim=1)

    return hook
