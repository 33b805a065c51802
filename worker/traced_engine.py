"""The engine of a job, with a span per batch and a counter of generated tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from opentelemetry.trace import Tracer

if TYPE_CHECKING:
    from torch import Tensor

    from alignez_core.engines.base import (
        BlockPass,
        Completion,
        Engine,
        EngineInfo,
        GenerationRequest,
        Prompt,
        ScoreRequest,
        Span,
        TokenStream,
    )
    from alignez_core.prompts import PromptFormat


class TracedEngine:
    """An `Engine` that forwards all calls to another one, with spans around the slow ones.

    `generated` counts the tokens of all batches, even if a failed attempt did not store their texts.

    Args:
        tracer: its spans become children of the current span of the calling thread.
    """

    def __init__(self, engine: Engine, tracer: Tracer) -> None:
        self._engine = engine
        self._tracer = tracer
        self.generated = 0

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def prompt_format(self) -> PromptFormat:
        return self._engine.prompt_format

    def tokenize(self, prompt: Prompt) -> list[int]:
        return self._engine.tokenize(prompt)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        with self._tracer.start_as_current_span("engine generate", attributes={"alignez.rows": len(requests)}) as span:
            made = self._engine.generate(requests)
            tokens = sum(len(each.token_ids) for each in made)
            self.generated += tokens
            span.set_attribute("gen_ai.usage.input_tokens", sum(each.prompt_tokens for each in made))
            span.set_attribute("gen_ai.usage.output_tokens", tokens)
            return made

    def stream(self, request: GenerationRequest) -> TokenStream:
        return self._engine.stream(request)

    def represent(self, texts: Sequence[Prompt], positions: Literal["last"] | Sequence[Span] = "last") -> Tensor:
        with self._tracer.start_as_current_span("engine represent", attributes={"alignez.rows": len(texts)}):
            return self._engine.represent(texts, positions)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        with self._tracer.start_as_current_span("engine score", attributes={"alignez.rows": len(requests)}):
            return self._engine.score(requests)

    def walk(self, requests: Sequence[ScoreRequest], copies: int = 1) -> BlockPass:
        return self._engine.walk(requests, copies)

    def close(self) -> None:
        self._engine.close()
