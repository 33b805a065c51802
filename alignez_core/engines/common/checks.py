"""Checks of a request, shared by all engines, so that all refuse the same requests with the same messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from alignez_core.editing import EditPlan
from alignez_core.engines.base import EngineInfo, GenerationRequest, Prompt, ScoreRequest, Span
from alignez_core.errors import ContextTooLong, InvalidInput, RequestTooLarge
from alignez_core.spec.limits import MAX_RANK


class PromptIds(Protocol):
    """A tokenizer; raises InvalidInput for a prompt that the model cannot read."""

    def prompt_ids(self, prompt: Prompt) -> list[int]: ...

    def continuation_ids(self, text: Prompt) -> list[int]: ...


class RequestChecks:
    """The checks of one engine; each returns the token ids, because making them is part of it.

    Args:
        info: of the engine's model. tokens: its tokenizer.
        max_rank: of an edit; 0: this engine cannot edit at all.
        max_cache_tokens: prompt and new tokens of one request at most; None: the context is the only limit.
        spare: tokens that the engine needs beyond a text that it only reads.
    """

    def __init__(
        self,
        info: EngineInfo,
        tokens: PromptIds,
        *,
        max_rank: int = MAX_RANK,
        max_cache_tokens: int | None = None,
        spare: int = 0,
    ) -> None:
        self._info = info
        self._tokens = tokens
        self._max_rank = max_rank
        self._max_cache_tokens = max_cache_tokens
        self._spare = spare

    def prompt(self, request: GenerationRequest) -> list[int]:
        """The prompt's ids. Raises: ModelMismatch, InvalidInput, ContextTooLong, RequestTooLarge."""
        self._edit(request.edit)
        beyond = [token for token in request.stop_token_ids if token >= self._info.vocab_size]
        if beyond:
            raise InvalidInput("stop_token_ids", f"{beyond[0]} is not below the vocabulary's {self._info.vocab_size}")
        prompt = self._tokens.prompt_ids(request.prompt)
        self._length(len(prompt), request.max_tokens)
        limit = self._max_cache_tokens
        if limit is not None and len(prompt) + request.max_tokens > limit:
            raise RequestTooLarge(len(prompt), request.max_tokens, limit)
        return prompt

    def texts(
        self, texts: Sequence[Prompt], positions: Literal["last"] | Sequence[Span]
    ) -> tuple[list[list[int]], list[Span]]:
        """Ids and span of each text that `represent` reads. Raises: InvalidInput, ContextTooLong."""
        ids = [self._tokens.prompt_ids(text) for text in texts]
        spans = [Span(len(text) - 1, len(text)) for text in ids] if positions == "last" else list(positions)
        if len(spans) != len(ids):
            raise InvalidInput("positions", f"{len(spans)} spans for {len(ids)} texts")
        for i, (text, span) in enumerate(zip(ids, spans, strict=True)):
            if span.end > len(text):
                raise InvalidInput("positions", f"the span of text {i} ends at {span.end}, it has {len(text)} tokens")
            self._length(len(text), self._spare)
        return ids, spans

    def scored(self, requests: Sequence[ScoreRequest]) -> list[tuple[list[int], list[int]]]:
        """Ids of each prompt and continuation. Raises: ModelMismatch, InvalidInput, ContextTooLong."""
        rows = []
        for request in requests:
            self._edit(request.edit)
            prompt = self._tokens.prompt_ids(request.prompt)
            tail = self._tokens.continuation_ids(request.continuation)
            self._length(len(prompt), len(tail) + self._spare)
            rows.append((prompt, tail))
        return rows

    def _edit(self, edit: EditPlan | None) -> None:
        if edit is None:
            return
        if not self._max_rank:
            raise InvalidInput("edit", "this engine was started without slots for edits")
        edit.check_fits(self._info.n_layers, self._info.hidden_size)
        if edit.rank > self._max_rank:
            raise InvalidInput(
                "edit",
                f"has rank {edit.rank}, this engine was started for {self._max_rank}; start it for more "
                f"(ALIGNEZ_API_VLLM_RANK={edit.rank}), or fit with rank {self._max_rank - 1}",
            )

    def _length(self, prompt_tokens: int, max_tokens: int) -> None:
        if prompt_tokens + max_tokens > self._info.context_length:
            raise ContextTooLong(prompt_tokens, max_tokens, self._info.context_length)
