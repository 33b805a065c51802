"""The serving systems that `bench.engine.throughput` compares, and the model with random weights that they run.

Each is one call, rows in and greedy tokens out. Timed is everything between: looking profiles up, stacking or loading
their tables, scheduling. Models, compiled code and adapters are loaded when a system is made.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from alignez_core.editing import EditPlan, low_rank_edit
from alignez_core.engines.base import Engine, GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.methods.distill import default_layers
from alignez_core.spec.limits import Positions
from bench.random_model import word_tokenizer

#: Rank of `distill`'s edit and of its strong form.
RANKS = {"distill": 4, "distill, strong form": 8}


class Row(NamedTuple):
    """A prompt's token ids, the number of its profile or None, and the length of its answer."""

    prompt: list[int]
    profile: int | None
    tokens: int


@dataclass(frozen=True)
class Bench:
    """Options that all systems share."""

    directory: Path
    model: Any  #: the bare model, which no system may change
    plans: Mapping[str, Sequence[EditPlan]]  #: by method, the profiles, editing the answer
    everywhere: Sequence[EditPlan]  #: those of `alignez`, editing every position
    adapters: Sequence[Path]  #: the LoRA directory of each of `everywhere`
    concurrency: int  #: the largest number of rows that run at once
    compile: bool  #: False: vLLM's eager mode, which starts faster

    def requests(self, rows: Sequence[Row], plans: Sequence[EditPlan]) -> list[GenerationRequest]:
        """The rows as requests to our engines."""
        edits = [None if row.profile is None else plans[row.profile] for row in rows]
        return [
            GenerationRequest(row.prompt, row.tokens, 0.0, ignore_eos=True, edit=edit)
            for row, edit in zip(rows, edits, strict=True)
        ]


#: Of all three vLLM systems. No prefix cache, because prompts repeat from run to run.
_VLLM: dict[str, Any] = {"max_num_batched_tokens": 4096, "max_model_len": 512, "use_tqdm_on_load": False}


class System(ABC):
    """A serving system to measure."""

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
        """Rows of one timed run. Rates are per token, so slow systems may run fewer."""
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
    """Plain vLLM: the same front end without edited layers."""

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
        prompts = torch.tensor([row.prompt for row in rows])  # of one length
        longest, start = max(row.tokens for row in rows), prompts.shape[1]
        with torch.inference_mode():
            made = model.generate(
                input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=longest,
                min_new_tokens=longest, do_sample=False, pad_token_id=0, **arguments,
            ).tolist()  # fmt: skip
        return [tokens[start : start + row.tokens] for tokens, row in zip(made, rows, strict=True)]


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


def random_llama(directory: Path) -> Any:
    """Saves a Llama of the shipped model's size (8 M parameters), with a tokenizer of one word per id; returns it."""
    config = LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=7, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    word_tokenizer(config.vocab_size).save_pretrained(directory)
    return load(directory)


def load(directory: Path) -> Any:
    """The bare model of Hugging Face in float32, without gradients."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).requires_grad_(False)


def random_plans(n_layers: int, width: int, count: int, positions: Positions = "answer") -> list[EditPlan]:
    """Distinct plans of the paper's method (rank 2) in the last five layers, strong enough to change random text."""
    generator = torch.Generator().manual_seed(0)
    layers = range(n_layers - min(5, n_layers), n_layers)
    pairs = torch.randn(count, 2, len(layers), width, generator=generator)
    return [EditPlan.alignez(layers, harm, help_, 4.0, positions=positions) for harm, help_ in pairs]


def low_rank_plans(n_layers: int, width: int, count: int, method: str) -> list[EditPlan]:
    """Distinct plans of the size that `distill` makes: in four layers, or in all of them in its strong form."""
    layers = default_layers(n_layers) if method == "distill" else tuple(range(n_layers))
    shape = (count, 2, len(layers), RANKS[method], width)
    pairs = torch.randn(shape, generator=torch.Generator().manual_seed(0)) / width
    return [EditPlan.low_rank(layers, u, v, torch.zeros(u.shape[:2])) for u, v in pairs]


def save_lora(plan: EditPlan, model: Any, directory: Path) -> None:
    """Writes a plan without offsets as a LoRA adapter in PEFT's file format, for a Llama.

    An edit y = x + (x·Uᵀ)·V of an MLP's output x = W·z is a LoRA on `down_proj` with A = U·W and B = Vᵀ, which edits
    every position, the prompt's too.
    """
    if plan.c.any() or plan.positions != "all":
        raise ValueError("a LoRA adds no offset and edits every position")
    tensors = {}
    for i, layer in enumerate(plan.layers):
        prefix = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{prefix}.lora_A.weight"] = plan.U[i] @ model.model.layers[layer].mlp.down_proj.weight
        tensors[f"{prefix}.lora_B.weight"] = plan.V[i].T.contiguous()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "lora_dropout": 0.0,
        "r": plan.rank, "lora_alpha": plan.rank,  # their quotient scales the adapter
        "target_modules": ["down_proj"], "layers_to_transform": list(plan.layers), "layers_pattern": "layers",
    }  # fmt: skip
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
