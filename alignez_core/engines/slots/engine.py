"""`TransformersEngine`: a Hugging Face causal language model, in process, all requests in one running batch.

Requests with different edits, or none, share every forward pass; `scheduler` says how they join and leave.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignez_core.engines.base import (
    Completion,
    EngineInfo,
    GenerationRequest,
    Prompt,
    SamplingDefaults,
    ScoreRequest,
    Span,
)
from alignez_core.engines.common.checks import RequestChecks
from alignez_core.engines.common.loading import context_length, load_model
from alignez_core.engines.common.streams import ChunkWriter, QueuedStream, StreamWriter
from alignez_core.engines.common.tokens import PromptFormatName, TextTokens, eos_ids
from alignez_core.engines.slots import batches, self_check
from alignez_core.engines.slots.block_pass import HaltingPass
from alignez_core.engines.slots.mlp_modules import (
    MLP_PATHS,
    candidate_paths,
    find_blocks,
    find_mlp_modules,
    residual_factor,
)
from alignez_core.engines.slots.rows import ResultList, Row, Sink, StreamSink
from alignez_core.engines.slots.runner import SlotRunner
from alignez_core.engines.slots.scheduler import EngineLoad, Scheduler
from alignez_core.errors import InvalidInput
from alignez_core.prompts import PromptFormat

T = TypeVar("T")

#: Tokens, padding included, of one pass of `represent` and `score`; running streams wait for at most one pass.
_BATCH_TOKENS = 4096
#: Tokens of one row in which continuations share their prompt; its mask has so many squared entries.
_PACK_TOKENS = 768


class TransformersEngine:
    """An `Engine` over one model; make it with `load`. Safe to use from any thread."""

    def __init__(
        self,
        info: EngineInfo,
        runner: SlotRunner,
        scheduler: Scheduler,
        tokens: TextTokens,
        prompt_format: PromptFormat,
        max_cache_tokens: int | None = None,
    ) -> None:
        self._info = info
        self._checks = RequestChecks(info, tokens, max_cache_tokens=max_cache_tokens)
        self._runner = runner
        self._scheduler = scheduler
        self._tokens = tokens
        self._format = prompt_format

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: str = "auto",
        *,
        revision: str | None = None,
        max_slots: int = 64,
        max_waiting: int = 1024,
        max_cache_tokens: int | None = None,
        prefill_piece: int = 512,
        mlp_path: str | None = None,
        prompt_format: PromptFormatName = "auto",
        compile: bool = False,
        threads: int | None = None,
        name: str | None = None,
    ) -> TransformersEngine:
        """The engine of the model in a directory or under a Hugging Face id.

        Args:
            dtype: float32, bfloat16 or float16, or "auto": float32 for small models, otherwise bfloat16 where the
                device gains from it (`dtypes.choose_dtype`). Edits are computed in float32 always.
            revision: commit or tag of a hub id.
            max_slots: requests that run at once; more wait.
            max_waiting: requests that may wait when every slot is taken; beyond, `stream` raises `EngineOverloaded`.
            max_cache_tokens: prompt and new tokens of all running requests together at most; a request that does not
                fit beside the others waits, one that never can raises `RequestTooLarge`. None: no limit. It bounds what
                rows may come to hold; the cache is as long as its longest row in every slot, so uneven rows take more.
            prefill_piece: a longer prompt is read in pieces of so many tokens, one between two steps of the others.
            mlp_path: module path of one block's edit site, with "{layer}", where it is not found by itself.
            prompt_format: "auto" takes the tokenizer's chat template if it has one.
            compile: the decode step through `torch.compile`, on a GPU with CUDA graphs (not run on one so far). It
                compiles here, for a minute or more, and needs a C++ compiler; where it cannot, the log says why and the
                engine goes on without. `compiled` says what holds.
            threads: torch's CPU threads, for the whole process; None leaves them.
            name: what `info.name` says; by default the directory's or the model's name.
        Raises: ModelNotFound, UnknownArchitecture, OutOfMemory; InvalidInput: a setting out of range.
        """
        if max_slots < 1:
            raise InvalidInput("max_slots", "must be at least 1")
        if max_waiting < 0:
            raise InvalidInput("max_waiting", "must be 0 or more")
        if max_cache_tokens is not None and max_cache_tokens < 2:
            raise InvalidInput("max_cache_tokens", "must be at least 2: a prompt's token and a new one")
        if prefill_piece < 1:
            raise InvalidInput("prefill_piece", "must be at least 1")
        if threads is not None:
            torch.set_num_threads(threads)
        loaded = load_model(path, device, dtype, revision)
        return cls.from_model(
            loaded.model,
            loaded.tokenizer,
            loaded.fingerprint,
            name=name or Path(str(path)).name,
            revision=loaded.revision,
            max_slots=max_slots,
            max_waiting=max_waiting,
            max_cache_tokens=max_cache_tokens,
            prefill_piece=prefill_piece,
            path_of_mlp=mlp_path,
            prompt_format=prompt_format,
            compile=compile,
        )

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        fingerprint: str,
        *,
        name: str,
        revision: str | None = None,
        max_slots: int = 64,
        max_waiting: int = 1024,
        max_cache_tokens: int | None = None,
        prefill_piece: int = 512,
        path_of_mlp: str | None = None,
        prompt_format: PromptFormatName = "auto",
        compile: bool = False,
        idle_s: float = 10.0,
        make_runner: Callable[..., SlotRunner] = SlotRunner,
    ) -> TransformersEngine:
        """The engine of a model that is in memory; the engine owns and changes it from then on.

        Args:
            idle_s: seconds without work after which the memory of the slots is freed.
            make_runner: called with `SlotRunner`'s arguments; tests watch the model's calls through it.
            The others: see `load`.
        """
        config = model.config.get_text_config()
        # Otherwise GPT-2 looks for padding in every step's tokens, to warn about it.
        model.config.pad_token_id = None
        model.train(False)
        n_layers = int(config.num_hidden_layers)
        path = _proven_site(model, n_layers, path_of_mlp)
        length = context_length(model.config)
        tokens = TextTokens(
            tokenizer, int(config.vocab_size), eos_ids(tokenizer, model.config, model.generation_config)
        )
        chosen_format = tokens.format(prompt_format)
        mlps, blocks = find_mlp_modules(model, n_layers, path), find_blocks(model, n_layers, path)
        runner = make_runner(model, mlps, max_slots, length, blocks)
        if compile:
            runner.compile()
        info = EngineInfo(
            name=name,
            fingerprint=fingerprint,
            n_layers=n_layers,
            hidden_size=int(config.hidden_size),
            vocab_size=int(config.vocab_size),
            context_length=length,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            prompt_format=chosen_format.name,
            revision=revision,
            sampling_defaults=SamplingDefaults.of(model.generation_config),
        )
        scheduler = Scheduler(
            runner,
            model.device,
            max_waiting,
            max_cache_tokens=max_cache_tokens,
            prefill_piece=prefill_piece,
            idle_s=idle_s,
        )
        return cls(info, runner, scheduler, tokens, chosen_format, max_cache_tokens)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def prompt_format(self) -> PromptFormat:
        return self._format

    @property
    def load_now(self) -> EngineLoad:
        """Load of the engine now."""
        return self._scheduler.load()

    @property
    def compiled(self) -> bool:
        """True if the decode step runs compiled."""
        return self._runner.programs > 0

    def tokenize(self, prompt: Prompt) -> list[int]:
        return self._tokens.prompt_ids(prompt)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        if not requests:
            return []
        results = ResultList(len(requests))
        rows = [self._row(request, results.sink(i)) for i, request in enumerate(requests)]
        self._scheduler.submit(rows, bounded=False)
        return results.wait()

    def stream(self, request: GenerationRequest) -> QueuedStream:
        writer = StreamWriter()
        self.start(request, writer)
        # Nobody need be told of a closed stream: while rows wait or run, every turn of the loop looks for one.
        return QueuedStream(writer)

    def start(self, request: GenerationRequest, writer: ChunkWriter, *, bounded: bool = True) -> None:
        """`stream` into a writer of the caller's. bounded: False: the queue takes it however full it is."""
        self._scheduler.submit([self._row(request, StreamSink(writer))], bounded=bounded)

    def represent(self, texts: Sequence[Prompt], positions: Literal["last"] | Sequence[Span] = "last") -> Tensor:
        ids, spans = self._checks.texts(texts, positions)
        if not ids:
            return torch.zeros(0, self._info.n_layers, self._info.hidden_size)
        out = torch.empty(len(ids), self._info.n_layers, self._info.hidden_size)

        def work(chosen: list[int]) -> Tensor:
            return batches.mlp_outputs(
                self._runner, [ids[i] for i in chosen], [spans[i] for i in chosen], self._info.n_layers
            )

        for chosen, rows in self._run_batches([len(text) for text in ids], work):
            out[chosen] = rows
        return out

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        rows = self._checks.scored(requests)

        packs = batches.pack(rows, [request.edit for request in requests], _PACK_TOKENS)

        def work(chosen: list[int]) -> list[Tensor]:
            return batches.pack_logprobs(self._runner, [packs[i] for i in chosen])

        scores = [torch.empty(0)] * len(requests)
        for chosen, found in self._run_batches([pack.length for pack in packs], work):
            members = [i for pack in chosen for i in packs[pack].members]
            for i, row in zip(members, found, strict=True):
                scores[i] = row.clone()  # made on the engine's thread, in inference mode
        return scores

    def walk(self, requests: Sequence[ScoreRequest], copies: int = 1) -> HaltingPass:
        rows = self._checks.scored(requests)
        return HaltingPass(
            self._runner,
            [row[0] for row in rows],
            [row[1] for row in rows],
            [request.edit for request in requests],
            self._scheduler.between_steps,
            _BATCH_TOKENS,
            copies,
        )

    def close(self) -> None:
        self._scheduler.close()

    def __enter__(self) -> TransformersEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _row(self, request: GenerationRequest, sink: Sink) -> Row:
        prompt = self._checks.prompt(request)
        seed = secrets.randbits(64) if request.seed is None else request.seed
        return Row(request, prompt, sink, self._tokens, seed)

    def _run_batches(self, lengths: Sequence[int], work: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
        """Runs `work` on batches of like lengths, each between two steps, so that streams go on meanwhile."""
        futures: list[tuple[list[int], Future[T]]] = []
        for chosen in batches.token_batches(lengths, _BATCH_TOKENS):
            futures.append((chosen, self._scheduler.between_steps(partial(work, chosen))))
        try:
            for chosen, future in futures:
                yield chosen, future.result()
        finally:
            for _, future in futures:
                future.cancel()


def _proven_site(model: PreTrainedModel, n_layers: int, override: str | None) -> str:
    """The edit site's path: as listed, where a parity test has proved it, else as the self-check proves it now.

    Raises: UnknownArchitecture.
    """
    self_check.refuse_layers_without_slots(model)
    paths = candidate_paths(model, override)
    if paths == [MLP_PATHS.get(model.config.model_type)]:
        return paths[0]
    return self_check.prove(model, n_layers, paths, residual_factor(model.config))
