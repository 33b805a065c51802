"""`VLLMEngine`: vLLM in process behind the `Engine` port, each request with an edit of its own.

vLLM schedules, batches, pages memory and runs on several GPUs; the plugin (`plugin`) edits. This module runs vLLM's
`AsyncLLM` on an event loop in a thread of its own, so callers in any thread or loop see the port they know.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import torch
from torch import Tensor
from vllm.v1.engine.async_llm import AsyncLLM

from alignez_core.editing import EditPlan
from alignez_core.engines.base import (
    Completion,
    EngineInfo,
    GenerationRequest,
    Prompt,
    ScoreRequest,
    Span,
    StreamChunk,
)
from alignez_core.engines.common.checks import RequestChecks
from alignez_core.engines.common.dtypes import AUTO, choose_dtype
from alignez_core.engines.common.streams import QueuedStream, StreamWriter
from alignez_core.engines.common.tokens import PromptFormatName, TextTokens
from alignez_core.engines.slots.scheduler import EngineLoad
from alignez_core.engines.vllm.admission import Admission, Ticket
from alignez_core.engines.vllm.captures import Captures
from alignez_core.engines.vllm.device.row_edit import RowCapture, RowEdit, to_extra_args
from alignez_core.engines.vllm.launch import EditableFiles, launch
from alignez_core.engines.vllm.loop_thread import LoopThread
from alignez_core.engines.vllm.outputs import Outputs, as_engine_error, gathered
from alignez_core.engines.vllm.plans.loader import PlanLoader
from alignez_core.engines.vllm.plans.message import PlanMessage
from alignez_core.engines.vllm.plans.slots import PlanSlots, SlotCounts
from alignez_core.engines.vllm.sampling import finish_reason, sampling_params, token_logprobs
from alignez_core.engines.vllm.settings import EditSettings
from alignez_core.engines.vllm.workers import CORE_ENDED, Workers
from alignez_core.errors import EngineCannotWalk, EngineClosed, InvalidInput
from alignez_core.prompts import PromptFormat
from alignez_core.spec.limits import MAX_RANK

T = TypeVar("T")

_log = logging.getLogger(__name__)


class VLLMEngine:
    """An `Engine` over vLLM; make it with `load`. Safe to use from any thread.

    Its chunks do not say how long a row has waited (`queued_s`): part of it is vLLM's own queue, whose times it keeps.
    """

    def __init__(
        self,
        info: EngineInfo,
        tokens: TextTokens,
        prompt_format: PromptFormat,
        loop: LoopThread,
        llm: AsyncLLM,
        settings: EditSettings,
        max_running: int,
        max_waiting: int,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._info = info
        self._tokens = tokens
        self._format = prompt_format
        self._loop = loop
        self._llm = llm
        self._settings = settings
        # In vLLM's worker an error would end the engine. It writes a token even where a text is only read.
        self._checks = RequestChecks(info, tokens, max_rank=settings.rank if settings.slots else 0, spare=1)
        self._max_running = max_running
        self._admission = Admission(max_running, max_waiting)
        self._slots = PlanSlots(settings.slots, PlanLoader(self._send_plans).load)
        self._outputs = Outputs(llm)
        self._workers = Workers(llm)
        self._captures = Captures(self._workers, info.n_layers, info.hidden_size)
        self._ids = itertools.count()
        self._generated = 0
        self._guard = threading.Lock()
        self._closed = False
        self._on_lost = on_lost
        loop.call(lambda: self._workers.when_lost(self._core_ended))

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: str = "auto",
        *,
        revision: str | None = None,
        max_running: int = 64,
        max_waiting: int = 1024,
        slots: int | None = None,
        rank: int = 4,
        compile: bool = True,
        tensor_parallel_size: int = 1,
        prefix_caching: bool = True,
        prompt_format: PromptFormatName = "auto",
        name: str | None = None,
        on_lost: Callable[[str], None] | None = None,
        **vllm_args: Any,
    ) -> VLLMEngine:
        """The engine of the model in a directory or under a Hugging Face id.

        Args:
            dtype: what vLLM takes, except that "auto" is `dtypes.choose_dtype`'s choice, the same as other engines'.
            max_running: requests in one batch at most (vLLM's `max_num_seqs`).
            max_waiting: requests beyond them at which `stream` raises `EngineOverloaded`.
            slots: plans that can be in use at once; requests whose plan finds no slot wait. By default twice
                `max_running`, so that plans of the next requests load while those of the running ones are in use.
                0: vLLM as it is, no request can be edited.
            rank: of the device tables; a plan of a higher rank is refused.
            compile: False is vLLM's eager mode, which starts faster.
            on_lost: called once, on the engine's loop, with one line, when vLLM's engine core ends by itself. All that
                ran has failed with `EngineClosed` then, and the engine can only be closed.
            vllm_args: further `AsyncEngineArgs`, as they are.
        Raises: ModelNotFound, UnknownArchitecture; InvalidInput: a setting out of range.
        """
        if max_running < 1:
            raise InvalidInput("max_running", "must be at least 1")
        if max_waiting < 0:
            raise InvalidInput("max_waiting", "must be 0 or more")
        if slots is not None and slots < 0:
            raise InvalidInput("slots", "must be 0 or more")
        if not 1 <= rank <= MAX_RANK:
            raise InvalidInput("rank", f"{rank} is outside 1 to {MAX_RANK}")
        model = EditableFiles.read(path, revision, prompt_format)
        if dtype == AUTO:
            dtype = choose_dtype(dtype, model.config, "cuda" if torch.cuda.is_available() else "cpu")
        settings = EditSettings(2 * max_running if slots is None else slots, rank)
        loop, llm = launch(
            {
                **model.vllm_arguments(dtype, settings),
                "max_num_seqs": max_running,
                "tensor_parallel_size": tensor_parallel_size,
                "enable_prefix_caching": prefix_caching,
                "enforce_eager": not compile,
                **vllm_args,
            }
        )
        info = model.info(name or Path(str(path)).name, dtype, llm)
        return cls(info, model.tokens, model.prompt_format, loop, llm, settings, max_running, max_waiting, on_lost)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def prompt_format(self) -> PromptFormat:
        return self._format

    @property
    def load_now(self) -> EngineLoad:
        """Load of the engine now; vLLM's own step count is not known here and 0."""
        return EngineLoad(*self._admission.counts, self._max_running, self._generated, 0)

    @property
    def slot_counts(self) -> SlotCounts:
        """Slot usage counters."""
        return self._slots.counts

    def tokenize(self, prompt: Prompt) -> list[int]:
        return self._tokens.prompt_ids(prompt)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        if not requests:
            return []
        prompts = [self._checks.prompt(request) for request in requests]
        with self._open():
            tickets = self._admission.enter([request.group for request in requests], bounded=False)

        async def together() -> list[Completion]:
            rows = zip(requests, prompts, tickets, strict=True)
            try:
                return await gathered([self._complete(*row) for row in rows])
            finally:
                for ticket in tickets:  # those that were cancelled before their first step
                    self._admission.leave(ticket)

        return self._run(together())

    def stream(self, request: GenerationRequest) -> QueuedStream:
        prompt = self._checks.prompt(request)
        writer = StreamWriter()
        with self._open():
            (ticket,) = self._admission.enter([request.group], bounded=True)

            def ended() -> None:
                self._admission.leave(ticket)
                writer.fail(EngineClosed("the engine was closed"))  # nothing, unless it was cancelled before it began

            cancel = self._loop.start(self._stream(request, prompt, writer, ticket), ended)
        return QueuedStream(writer, on_close=cancel)

    def represent(self, texts: Sequence[Prompt], positions: Literal["last"] | Sequence[Span] = "last") -> Tensor:
        ids, spans = self._checks.texts(texts, positions)
        if not self._settings.slots:
            raise InvalidInput("represent", "this engine was started without slots for edits, so it captures nothing")
        if not ids:
            return torch.zeros(0, self._info.n_layers, self._info.hidden_size)

        async def together() -> Tensor:
            rows = list(zip(ids, spans, strict=True))
            return torch.cat([await self._represent(chunk) for chunk in self._captures.chunks(rows)])

        return self._run(together())

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        rows = [(*ids, request.edit) for ids, request in zip(self._checks.scored(requests), requests, strict=True)]

        async def together() -> list[Tensor]:
            return await gathered([self._score(*row) for row in rows])

        return self._run(together())

    def walk(self, requests: Sequence[ScoreRequest], copies: int = 1) -> NoReturn:
        """Raises: EngineCannotWalk: vLLM's forward pass does not halt between blocks."""
        raise EngineCannotWalk("VLLMEngine")

    def close(self) -> None:
        with self._guard:
            if self._closed:
                return
            self._closed = True
        self._loop.cancel_own()  # their ends still talk to vLLM
        self._loop.run(self._shut_down())
        self._loop.cancel_all()
        self._loop.close()

    def __enter__(self) -> VLLMEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # On the caller's thread

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Holds `close` off meanwhile. Raises: EngineClosed."""
        with self._guard:
            if self._closed:
                raise EngineClosed("the engine is closed")
            yield

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            with self._open():
                running = self._loop.submit(work)
        except EngineClosed:
            work.close()
            raise
        try:
            result: T = running.result()
        except concurrent.futures.CancelledError as error:  # not asyncio's, which is another class
            raise EngineClosed("the engine was closed") from error
        return result

    # On the engine's loop

    def _core_ended(self) -> None:
        if self._closed:
            return
        _log.error("%s", CORE_ENDED)
        if self._on_lost is not None:
            self._on_lost(CORE_ENDED)

    async def _shut_down(self) -> None:
        self._llm.shutdown()

    async def _complete(self, request: GenerationRequest, prompt: list[int], ticket: Ticket) -> Completion:
        try:
            await self._admission.turn(ticket)
            async with self._edited(request.edit, len(prompt)) as edit:
                params = sampling_params(request, self._end_ids(request), to_extra_args(edit), streamed=False)
                last = await self._outputs.last(prompt, params)
        finally:
            self._admission.leave(ticket)
        output = last.outputs[0]
        ids = tuple(output.token_ids)
        self._generated += len(ids)
        return Completion(
            output.text,
            ids,
            finish_reason(output.finish_reason) or "stop",
            token_logprobs(ids, output.logprobs, request.logprobs, self._tokens, opens=True),
            len(prompt),
            last.num_cached_tokens or 0,
        )

    async def _stream(
        self, request: GenerationRequest, prompt: list[int], writer: StreamWriter, ticket: Ticket
    ) -> None:
        try:
            await self._admission.turn(ticket)
            async with self._edited(request.edit, len(prompt)) as edit:
                params = sampling_params(request, self._end_ids(request), to_extra_args(edit), streamed=True)
                # Closed here and not by the garbage collector: closing is what aborts the request in vLLM.
                async with contextlib.aclosing(self._outputs.stream(prompt, params)) as outputs:
                    opens = True
                    async for piece in outputs:
                        output = piece.outputs[0]
                        ids = tuple(output.token_ids)
                        self._generated += len(ids)
                        logprobs = token_logprobs(ids, output.logprobs, request.logprobs, self._tokens, opens=opens)
                        opens = opens and not ids
                        reason = finish_reason(output.finish_reason)
                        if reason is not None:
                            # A reader of the last token sees the engine without the request.
                            self._admission.leave(ticket)
                        writer.push(StreamChunk(output.text, ids, reason, logprobs, len(prompt)))
        except asyncio.CancelledError:
            writer.fail(EngineClosed("the engine was closed"))
            raise
        except Exception as error:
            writer.fail(as_engine_error(error))

    async def _represent(self, texts: Sequence[tuple[list[int], Span]]) -> Tensor:
        captures = [RowCapture(f"c{next(self._ids)}", span.start, span.end) for _, span in texts]
        keys = [capture.key for capture in captures]
        try:
            await gathered([self._read(text, to) for (text, _), to in zip(texts, captures, strict=True)])
        except Exception:
            await self._captures.forget(keys)
            raise
        return await self._captures.take(keys)

    async def _read(self, text: list[int], to: RowCapture) -> None:
        params = sampling_params(
            GenerationRequest(text, 1, 0.0, ignore_eos=True), (), to_extra_args(capture=to), streamed=False
        )
        # Only the last token is computed for certain when a prefix is cached.
        params.skip_reading_prefix_cache = to.start < len(text) - 1
        await self._outputs.last(text, params)

    async def _score(self, prompt: list[int], tail: list[int], plan: EditPlan | None) -> Tensor:
        async with self._edited(plan, len(prompt)) as edit:
            request = GenerationRequest(prompt, 1, 0.0, ignore_eos=True)
            params = sampling_params(request, (), to_extra_args(edit), streamed=False)
            params.prompt_logprobs = 0
            last = await self._outputs.last(prompt + tail, params)
        found = last.prompt_logprobs[len(prompt) :]
        return torch.tensor([float(entry[token].logprob) for token, entry in zip(tail, found, strict=True)])

    @contextlib.asynccontextmanager
    async def _edited(self, plan: EditPlan | None, prompt_length: int) -> Any:
        """The request's `RowEdit`, its plan held in a slot meanwhile; None when nothing is edited."""
        if plan is None or plan.is_identity:
            yield None
            return
        slot = await self._slots.acquire(plan)
        try:
            yield RowEdit.of(plan, slot, prompt_length)
        finally:
            self._slots.release(plan)

    async def _send_plans(self, plans: Sequence[PlanMessage]) -> None:
        await self._workers.call("alignez_load_plans", plans)

    def _end_ids(self, request: GenerationRequest) -> frozenset[int]:
        stops = self._tokens.stop_ids(request.stop).union(request.stop_token_ids)
        return stops if request.ignore_eos else stops | self._tokens.eos_ids
