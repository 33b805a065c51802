"""`VLLMEngine`: vLLM in process behind the `Engine` port, each request with an edit of its own.

vLLM schedules, batches, pages memory and runs on several GPUs; the plugin (`plugin`) edits. This module runs vLLM's
`AsyncLLM` on an event loop in a thread of its own, so callers in any thread or loop see the port they know.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import threading
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig
from vllm import AsyncEngineArgs, TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM

from alignez_core.editing import MAX_RANK, EditPlan
from alignez_core.engines.base import (
    Completion,
    EngineInfo,
    GenerationRequest,
    Prompt,
    ScoreRequest,
    Span,
    StreamChunk,
)
from alignez_core.engines.loading import ModelFiles, context_length, locate
from alignez_core.engines.scheduler import EngineLoad
from alignez_core.engines.streams import QueuedStream, StreamWriter
from alignez_core.engines.tokens import PromptFormatName, TextTokens, eos_ids
from alignez_core.engines.vllm import plugin
from alignez_core.engines.vllm.loop_thread import LoopThread
from alignez_core.engines.vllm.plan_loader import PlanLoader
from alignez_core.engines.vllm.plan_message import PlanMessage
from alignez_core.engines.vllm.row_edit import RowCapture, RowEdit, to_extra_args
from alignez_core.engines.vllm.sampling import finish_reason, sampling_params, token_logprobs
from alignez_core.engines.vllm.settings import EditSettings
from alignez_core.engines.vllm.slots import PlanSlots, SlotCounts
from alignez_core.errors import (
    AlignezError,
    ContextTooLong,
    EngineClosed,
    EngineOverloaded,
    InvalidInput,
    ModelNotFound,
    UnknownArchitecture,
)
from alignez_core.prompts import PromptFormat

T = TypeVar("T")

_EXTENSION = "alignez_core.engines.vllm.worker_extension.AlignezWorker"


class VLLMEngine:
    """An `Engine` over vLLM; make it with `load`. Safe to use from any thread."""

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
    ) -> None:
        self._info = info
        self._tokens = tokens
        self._format = prompt_format
        self._loop = loop
        self._llm = llm
        self._settings = settings
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._slots = PlanSlots(settings.slots, PlanLoader(self._send_plans).load)
        self._ids = itertools.count()
        self._live = 0
        self._generated = 0
        self._guard = threading.Lock()
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: str = "float32",
        *,
        revision: str | None = None,
        max_running: int = 64,
        max_waiting: int = 1024,
        slots: int | None = None,
        rank: int = 2,
        compile: bool = True,
        tensor_parallel_size: int = 1,
        prefix_caching: bool = True,
        prompt_format: PromptFormatName = "auto",
        name: str | None = None,
        **vllm_args: Any,
    ) -> VLLMEngine:
        """The engine of the model in a directory or under a Hugging Face id.

        Args:
            max_running: requests in one batch at most (vLLM's `max_num_seqs`).
            max_waiting: requests beyond them at which `stream` raises `EngineOverloaded`.
            slots: plans that can be in use at once; requests whose plan finds no slot wait. By default twice
                `max_running`, so that plans of the next requests load while those of the running ones are in use.
                0: vLLM as it is, no request can be edited.
            rank: of the device tables; a plan of a higher rank is refused.
            compile: False is vLLM's eager mode, which starts faster.
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
        files = locate(path, revision)
        config = AutoConfig.from_pretrained(files.source, revision=revision)
        architecture = (config.architectures or ["none"])[0]
        if architecture not in plugin.ARCHITECTURES:
            raise UnknownArchitecture(
                f"{architecture} cannot be edited in vLLM; there are {', '.join(plugin.ARCHITECTURES)}. "
                "TransformersEngine knows more"
            )
        plugin.register()
        text = config.get_text_config()
        tokens = TextTokens(files.tokenizer, int(text.vocab_size), eos_ids(files.tokenizer, config, _generation(files)))
        chosen_format = tokens.format(prompt_format)
        settings = EditSettings(2 * max_running if slots is None else slots, rank)
        length = context_length(config)
        args = AsyncEngineArgs(
            **{
                "model": files.source,
                "revision": revision,
                "dtype": dtype,
                "max_model_len": length,
                "max_num_seqs": max_running,
                "tensor_parallel_size": tensor_parallel_size,
                "enable_prefix_caching": prefix_caching,
                "enforce_eager": not compile,
                "seed": secrets.randbelow(2**31),
                "worker_extension_cls": _EXTENSION,
                "additional_config": settings.to_additional_config() if settings.slots else {},
                "generation_config": "vllm",
                "disable_log_stats": True,
                **vllm_args,
            }
        )
        loop = LoopThread()
        try:
            llm = loop.run(_start(args))
        except BaseException as error:
            loop.close()
            if isinstance(error, AlignezError | KeyboardInterrupt):
                raise
            raise ModelNotFound(f"vLLM cannot start with {path}: {type(error).__name__}: {error}") from error
        fingerprint, commit = files.resolved()
        info = EngineInfo(
            name=name or Path(str(path)).name,
            fingerprint=fingerprint,
            n_layers=int(text.num_hidden_layers),
            hidden_size=int(text.hidden_size),
            vocab_size=int(text.vocab_size),
            context_length=length,
            dtype=dtype,
            device=str(llm.vllm_config.device_config.device_type),
            prompt_format=chosen_format.name,
            revision=commit,
        )
        return cls(info, tokens, chosen_format, loop, llm, settings, max_running, max_waiting)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def prompt_format(self) -> PromptFormat:
        return self._format

    @property
    def load_now(self) -> EngineLoad:
        """How busy the engine is; vLLM's own step count is not known here and 0."""
        live = self._live
        running = min(live, self._max_running)
        return EngineLoad(running, live - running, self._max_running, self._generated, 0)

    @property
    def slot_counts(self) -> SlotCounts:
        """How the plan slots fare."""
        return self._slots.counts

    def tokenize(self, prompt: Prompt) -> list[int]:
        return self._tokens.prompt_ids(prompt)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        if not requests:
            return []
        rows = [(request, self._checked(request)) for request in requests]

        async def together() -> list[Completion]:
            return await _all([self._complete(request, prompt) for request, prompt in rows])

        with self._counted(len(rows), bounded=False):
            return self._run(together())

    def stream(self, request: GenerationRequest) -> QueuedStream:
        prompt = self._checked(request)
        counted = self._counted(1, bounded=True)
        counted.__enter__()
        writer = StreamWriter()
        try:
            future = self._loop.submit(self._stream(request, prompt, writer, counted))
        except BaseException:
            counted.__exit__(None, None, None)
            raise
        return QueuedStream(writer, on_close=future.cancel)

    def represent(self, texts: Sequence[Prompt], positions: Literal["last"] | Sequence[Span] = "last") -> Tensor:
        ids = [self._tokens.prompt_ids(text) for text in texts]
        spans = [Span(len(text) - 1, len(text)) for text in ids] if positions == "last" else list(positions)
        if len(spans) != len(ids):
            raise InvalidInput("positions", f"{len(spans)} spans for {len(ids)} texts")
        for i, (text, span) in enumerate(zip(ids, spans, strict=True)):
            if span.end > len(text):
                raise InvalidInput("positions", f"the span of text {i} ends at {span.end}, it has {len(text)} tokens")
            self._check_length(len(text), 1)
        if not self._settings.slots:
            raise InvalidInput("represent", "this engine was started without slots for edits, so it captures nothing")
        if not ids:
            return torch.zeros(0, self._info.n_layers, self._info.hidden_size)

        async def together() -> list[Tensor]:
            return await _all([self._represent(text, span) for text, span in zip(ids, spans, strict=True)])

        with self._counted(len(ids), bounded=False):
            return torch.stack(self._run(together()))

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        rows = []
        for request in requests:
            prompt = self._tokens.prompt_ids(request.prompt)
            tail = self._tokens.continuation_ids(request.continuation)
            self._check_length(len(prompt), len(tail) + 1)
            self._check_edit(request.edit)
            rows.append((prompt, tail, request.edit))

        async def together() -> list[Tensor]:
            return await _all([self._score(*row) for row in rows])

        with self._counted(len(rows), bounded=False):
            return self._run(together())

    def close(self) -> None:
        with self._guard:
            if self._closed:
                return
            self._closed = True
        self._loop.cancel_all(of=__file__)  # their ends still talk to vLLM
        self._loop.run(self._shut_down())
        self._loop.cancel_all()
        self._loop.close()

    def __enter__(self) -> VLLMEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # On the caller's thread

    def _checked(self, request: GenerationRequest) -> list[int]:
        """The prompt's ids, after every check that must not fail in vLLM's worker."""
        self._check_edit(request.edit)
        prompt = self._tokens.prompt_ids(request.prompt)
        self._check_length(len(prompt), request.max_tokens)
        return prompt

    def _check_edit(self, edit: EditPlan | None) -> None:
        if edit is None:
            return
        if not self._settings.slots:
            raise InvalidInput("edit", "this engine was started without slots for edits")
        edit.check_fits(self._info.n_layers, self._info.hidden_size)
        if edit.rank > self._settings.rank:
            raise InvalidInput("edit", f"has rank {edit.rank}, this engine was started for {self._settings.rank}")

    def _check_length(self, prompt_tokens: int, max_tokens: int) -> None:
        if prompt_tokens + max_tokens > self._info.context_length:
            raise ContextTooLong(prompt_tokens, max_tokens, self._info.context_length)

    @contextlib.contextmanager
    def _counted(self, count: int, *, bounded: bool) -> Iterator[None]:
        with self._guard:
            if self._closed:
                raise EngineClosed("the engine is closed")
            waiting, limit = self._live - self._max_running, self._max_waiting
            if bounded and self._live >= self._max_running and waiting >= limit:
                raise EngineOverloaded(waiting, limit)
            self._live += count
        try:
            yield
        finally:
            with self._guard:
                self._live -= count

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.run(work)
        except asyncio.CancelledError as error:
            raise EngineClosed("the engine was closed") from error

    # On the engine's loop

    async def _shut_down(self) -> None:
        self._llm.shutdown()

    async def _complete(self, request: GenerationRequest, prompt: list[int]) -> Completion:
        async with self._edited(request.edit, len(prompt)) as edit:
            params = sampling_params(request, self._eos(), to_extra_args(edit), streamed=False)
            last = await self._last(prompt, params)
        output = last.outputs[0]
        ids = tuple(output.token_ids)
        self._generated += len(ids)
        return Completion(
            output.text,
            ids,
            finish_reason(output.finish_reason) or "stop",
            token_logprobs(ids, output.logprobs, request.logprobs, self._tokens),
            len(prompt),
            last.num_cached_tokens or 0,
        )

    async def _stream(self, request: GenerationRequest, prompt: list[int], writer: StreamWriter, counted: Any) -> None:
        try:
            async with self._edited(request.edit, len(prompt)) as edit:
                params = sampling_params(request, self._eos(), to_extra_args(edit), streamed=True)
                # Closed here and not by the garbage collector: closing is what aborts the request in vLLM.
                async with contextlib.aclosing(self._outputs(prompt, params)) as outputs:
                    async for piece in outputs:
                        output = piece.outputs[0]
                        ids = tuple(output.token_ids)
                        self._generated += len(ids)
                        logprobs = token_logprobs(ids, output.logprobs, request.logprobs, self._tokens)
                        reason = finish_reason(output.finish_reason)
                        writer.push(StreamChunk(output.text, ids, reason, logprobs, len(prompt)))
        except asyncio.CancelledError:
            writer.fail(EngineClosed("the engine was closed"))
            raise
        except Exception as error:
            writer.fail(_as_engine_error(error))
        finally:
            counted.__exit__(None, None, None)

    async def _represent(self, text: list[int], span: Span) -> Tensor:
        key = f"c{next(self._ids)}"
        request = GenerationRequest(text, 1, 0.0, ignore_eos=True)
        capture = RowCapture(key, span.start, span.end)
        params = sampling_params(request, (), to_extra_args(capture=capture), streamed=False)
        # Only the last token is computed for certain when a prefix is cached.
        params.skip_reading_prefix_cache = span.start < len(text) - 1
        await self._last(text, params)
        workers = await self._llm.collective_rpc("alignez_take_captured", args=([key],))
        out = torch.zeros(self._info.n_layers, self._info.hidden_size)
        got: set[int] = set()
        for (found,) in workers:
            if found is not None:
                layers, width, raw = found
                rows = np.frombuffer(raw, "<f4").astype(np.float32).reshape(len(layers), width)
                out[layers] = torch.from_numpy(rows)
                got.update(layers)
        if len(got) != self._info.n_layers:
            raise AlignezError(f"vLLM's workers captured {len(got)} of {self._info.n_layers} layers")
        return out

    async def _score(self, prompt: list[int], tail: list[int], plan: EditPlan | None) -> Tensor:
        async with self._edited(plan, len(prompt)) as edit:
            request = GenerationRequest(prompt, 1, 0.0, ignore_eos=True)
            params = sampling_params(request, (), to_extra_args(edit), streamed=False)
            params.prompt_logprobs = 0
            last = await self._last(prompt + tail, params)
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
        await self._llm.collective_rpc("alignez_load_plans", args=(plans,))

    async def _outputs(self, prompt: list[int], params: Any) -> Any:
        source = self._llm.generate(TokensPrompt(prompt_token_ids=prompt), params, f"r{next(self._ids)}")
        async with contextlib.aclosing(source) as outputs:
            async for output in outputs:
                yield output

    async def _last(self, prompt: list[int], params: Any) -> Any:
        last = None
        try:
            async with contextlib.aclosing(self._outputs(prompt, params)) as outputs:
                async for output in outputs:
                    last = output
        except Exception as error:
            raise _as_engine_error(error) from error
        if last is None:
            raise AlignezError("vLLM ended a request without an answer")
        return last

    def _eos(self) -> tuple[int, ...]:
        return tuple(sorted(self._tokens.eos_ids))


async def _start(args: AsyncEngineArgs) -> AsyncLLM:
    return AsyncLLM.from_engine_args(args)


async def _all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order; the first error cancels the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _generation(files: ModelFiles) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(files.source)
    except OSError:
        return None  # a model need not have one


def _as_engine_error(error: Exception) -> AlignezError:
    if isinstance(error, AlignezError):
        return error
    failure = AlignezError(f"vLLM failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
