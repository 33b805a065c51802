"""The systems that `bench.serving` compares, each behind one call: rows in, greedy tokens out.

A row is a prompt and the number of its profile, or None. What is timed is everything from there to the tokens: looking
profiles up, stacking or loading their tables, scheduling. What is not: reading models, compiling, and getting adapters
into memory, which happens when a system is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine, GenerationRequest
from alignez_core.engines.slots.edits import low_rank_edit
from alignez_core.engines.slots.engine import TransformersEngine
from bench.engine import greedy

Edits = Literal["answer", "all", "none"]
Row = tuple[list[int], int | None]  # token ids, profile


@dataclass(frozen=True)
class Bench:
    """What all systems share.

    Args:
        model: the bare one, for whoever does not change it.
        plans: the profiles, editing the answer. everywhere: the same profiles editing every position.
        adapters: the LoRA directory of each of `everywhere`.
        concurrency: rows that run at once at most.
        compile: False: vLLM's eager mode, which starts faster.
        vllm_memory: share of a GPU's memory that each vLLM takes.
    """

    directory: Path
    model: Any
    plans: Sequence[EditPlan]
    everywhere: Sequence[EditPlan]
    adapters: Sequence[Path]
    concurrency: int
    new_tokens: int
    device: str
    dtype: str
    compile: bool
    vllm_memory: float

    def vllm_settings(self) -> dict[str, Any]:
        """What vLLM's three ways of running have in common. No prefix cache, because prompts repeat from run to run."""
        memory = {} if self.device == "cpu" else {"gpu_memory_utilization": self.vllm_memory}
        return {"max_num_batched_tokens": 4096, "max_model_len": 512, "use_tqdm_on_load": False, **memory}


class System(ABC):
    """One way to serve rows.

    Args of the class:
        queues: True: takes any number of rows and keeps `concurrency` of them running. False: takes one batch, and is
            timed on one.
        edits: the positions that profiles change; "none": serves the bare model only.
        unsteered: the system whose run without profiles is this one's; "" is itself.
    """

    name: ClassVar[str]
    queues: ClassVar[bool] = False
    edits: ClassVar[Edits] = "answer"
    unsteered: ClassVar[str] = ""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def close(self) -> None:  # noqa: B027 (most have nothing to free)
        """Frees what the system holds."""

    @abstractmethod
    def run(self, rows: Sequence[Row]) -> list[list[int]]:
        """The new tokens of each row, in order."""

    def sample(self, profiles: int, requests: int) -> int:
        """Rows of one timed run: rates are per token, so slow systems need not run all of them."""
        return requests if self.queues else min(requests, self.bench.concurrency)


class EngineSystem(System):
    """An `Engine` of ours."""

    queues = True

    def __init__(self, bench: Bench, engine: Engine) -> None:
        super().__init__(bench)
        self.engine = engine

    def run(self, rows: Sequence[Row]) -> list[list[int]]:
        plans, new = self.bench.plans, self.bench.new_tokens
        requests = [
            GenerationRequest(prompt, new, 0.0, ignore_eos=True, edit=None if profile is None else plans[profile])
            for prompt, profile in rows
        ]
        return [list(completion.token_ids) for completion in self.engine.generate(requests)]

    def close(self) -> None:
        self.engine.close()


class Transformers(EngineSystem):
    """Ours, in process."""

    name = "TransformersEngine"

    def __init__(self, bench: Bench) -> None:
        engine = TransformersEngine.load(
            bench.directory, bench.device, bench.dtype, prompt_format="plain", max_slots=bench.concurrency
        )
        super().__init__(bench, engine)


class VLLM(EngineSystem):
    """Ours, over vLLM."""

    name = "VLLMEngine"
    slots: ClassVar[int | None] = None

    def __init__(self, bench: Bench) -> None:
        from alignez_core.engines.vllm.engine import VLLMEngine

        engine = VLLMEngine.load(
            bench.directory,
            bench.dtype,
            max_running=bench.concurrency,
            slots=self.slots,
            prefix_caching=False,
            compile=bench.compile,
            prompt_format="plain",
            **bench.vllm_settings(),
        )
        super().__init__(bench, engine)


class PlainVLLM(VLLM):
    """vLLM as it is: the same front, no edited layers in the model."""

    name = "vLLM"
    slots = 0
    edits = "none"


class LoraVLLM(System):
    """vLLM's own multi-LoRA, all adapters in memory, as many in a batch as rows; vLLM does not compile it on a CPU."""

    name = "vLLM multi-LoRA"
    queues = True
    edits = "all"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self._llm = LLM(
            str(bench.directory),
            dtype=bench.dtype,
            max_num_seqs=bench.concurrency,
            enable_prefix_caching=False,
            generation_config="vllm",
            enforce_eager=not bench.compile,
            enable_lora=True,
            max_loras=min(bench.concurrency, len(bench.adapters)),
            max_cpu_loras=len(bench.adapters),
            max_lora_rank=8,  # the smallest that vLLM has above 1
            lora_target_modules=["down_proj"],
            **bench.vllm_settings(),
        )
        self._adapters = [LoRARequest(path.name, i + 1, str(path)) for i, path in enumerate(bench.adapters)]
        for adapter in self._adapters:
            self._llm.llm_engine.add_lora(adapter)

    def run(self, rows: Sequence[Row]) -> list[list[int]]:
        from vllm import SamplingParams, TokensPrompt

        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=prompt) for prompt, _ in rows],
            SamplingParams(temperature=0.0, max_tokens=self.bench.new_tokens, ignore_eos=True),
            use_tqdm=False,
            lora_request=[None if profile is None else self._adapters[profile] for _, profile in rows],
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    def sample(self, profiles: int, requests: int) -> int:
        # Slow; it needs more than a batch only where profiles are more than rows.
        return requests if profiles > self.bench.concurrency else min(requests, self.bench.concurrency)

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


class HuggingFace(System):
    """`generate` on one batch."""

    name = "Hugging Face generate"
    edits: ClassVar[Edits] = "none"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.model = bench.model

    def run(self, rows: Sequence[Row]) -> list[list[int]]:
        return self._generate(rows)

    def _generate(self, rows: Sequence[Row], **arguments: Any) -> list[list[int]]:
        prompts = torch.tensor([prompt for prompt, _ in rows], device=self.bench.device)
        tokens: list[list[int]] = greedy(self.model, prompts, self.bench.new_tokens, **arguments).tolist()
        return tokens


class Hook(HuggingFace):
    """`generate` with a forward hook per edited layer that holds every row's directions: the honest baseline."""

    name = "forward hook, per-row directions"
    edits = "answer"
    unsteered = HuggingFace.name

    def run(self, rows: Sequence[Row]) -> list[list[int]]:
        plans = [self.bench.plans[profile] for _, profile in rows if profile is not None]
        tables = [torch.stack(t).to(self.bench.device) for t in zip(*((p.U, p.V, p.c) for p in plans), strict=True)]
        with ExitStack() as handles:
            for i, layer in enumerate(plans[0].layers):
                mlp = self.model.model.layers[layer].mlp
                handles.callback(mlp.register_forward_hook(_row_hook(*(t[:, i] for t in tables))).remove)
            return self._generate(rows)


class SteeringVectors(HuggingFace):
    """The library steering-vectors: one profile on the model at a time, so a batch holds the rows of one profile."""

    name = "steering-vectors, profile by profile"
    edits = "all"
    unsteered = HuggingFace.name

    def __init__(self, bench: Bench) -> None:
        from steering_vectors import SteeringVector

        super().__init__(bench)
        # The library knows one vector a layer; its operators may be ours, so the vector is all of U and V in a row.
        self._vectors = [
            SteeringVector(
                {layer: torch.cat((p.U[i], p.V[i])).flatten().to(bench.device) for i, layer in enumerate(p.layers)},
                layer_type="mlp",
            )
            for p in bench.everywhere
        ]

    def run(self, rows: Sequence[Row]) -> list[list[int]]:
        by_profile: dict[int | None, list[int]] = {}
        for i, (_, profile) in enumerate(rows):
            by_profile.setdefault(profile, []).append(i)
        made: dict[int, list[int]] = {}
        for profile, chosen in by_profile.items():
            steered: AbstractContextManager[Any] = nullcontext()
            if profile is not None:
                steered = self._vectors[profile].apply(self.model, operator=_low_rank_operator)
            with steered:
                made.update(zip(chosen, self._generate([rows[i] for i in chosen]), strict=True))
        return [made[i] for i in range(len(rows))]

    def sample(self, profiles: int, requests: int) -> int:
        batch = super().sample(profiles, requests)
        return batch if profiles < batch else max(1, batch // 16)


class Peft(HuggingFace):
    """PEFT's mixed-adapter batch (`adapter_names`), all adapters in memory."""

    name = "PEFT mixed-adapter batch"
    edits = "all"
    unsteered = HuggingFace.name

    def __init__(self, bench: Bench) -> None:
        from peft import PeftModel

        super().__init__(bench)
        first, *others = bench.adapters
        own = load_model(bench.directory, bench.device, bench.dtype)  # PEFT puts its layers into it
        self.model = PeftModel.from_pretrained(own, first, adapter_name=first.name)
        for path in others:
            self.model.load_adapter(path, adapter_name=path.name)

    def run(self, rows: Sequence[Row]) -> list[list[int]]:
        names = [self.bench.adapters[profile].name for _, profile in rows if profile is not None]
        return self._generate(rows, adapter_names=names)


SYSTEMS: tuple[type[System], ...] = (
    HuggingFace, Hook, Peft, SteeringVectors, Transformers, VLLM, PlainVLLM, LoraVLLM,
)  # fmt: skip


def load_model(directory: Path, device: str, dtype: str) -> Any:
    """The bare model of Hugging Face."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    model.requires_grad_(False)
    return model.to(device)  # type: ignore[arg-type]


def _row_hook(u: Tensor, v: Tensor, c: Tensor) -> Callable[[Any, Any, Tensor], Tensor]:
    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        # Prompts are of one length, so that the answer begins in the last column of the first pass.
        edited = low_rank_edit(output[:, -1:].float(), u, v, c).to(output.dtype)
        return edited if output.shape[1] == 1 else torch.cat((output[:, :-1], edited), dim=1)

    return hook


def _low_rank_operator(x: Tensor, tables: Tensor) -> Tensor:
    u, v = tables.view(2, -1, x.shape[-1]).to(x.dtype)
    delta: Tensor = (x @ u.T) @ v
    return delta
