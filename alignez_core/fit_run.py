"""State of a running fit or evaluation: its generated texts, its progress, tokens and seconds.

`progress` receives each finished chunk of texts; after a crash the caller passes the stored chunks as `resume`.
Readings and scores are not stored, because one deterministic forward pass per text makes them again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine, GenerationRequest
from alignez_core.self_preference import clean, invent_queries, row_seed
from alignez_core.spec.config import FitConfig

Stage = Literal["characteristics", "responses", "readings", "fitting", "tuning", "evaluation"]
STAGES: tuple[Stage, ...] = ("characteristics", "responses", "readings", "fitting", "tuning", "evaluation")
OWN_QUERIES = "queries"


@dataclass(frozen=True)
class TextChunk:
    """Generated texts of one kind, stored for a resumed fit.

    Args:
        kind: "queries" (invented by the model), "help_characteristics", "harm_characteristics", "help_response",
            "harm_response", or a name made by `arms.kind_of` for an arm of a comparison.
        indices: sample indices.
        texts: one per index.
    """

    kind: str
    indices: tuple[int, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class FitEvent:
    """Progress of one stage: `done` of `total` units, and the chunk that was just finished, if any."""

    stage: Stage
    done: int
    total: int
    chunk: TextChunk | None = None


@dataclass(frozen=True)
class TextRequest:
    """Request for one text.

    Args:
        kind: as `TextChunk.kind`.
        index: sample index.
        salt: input of the seed beside the index; arms that are compared use the same one.
        max_tokens: maximum new tokens; None: the fit's `answer_tokens`.
    """

    kind: str
    index: int
    prompt: str
    edit: EditPlan | None = None
    salt: str = "answer"
    max_tokens: int | None = None


@dataclass
class FitRun:
    """Texts, progress, tokens and seconds per stage of one attempt.

    Tokens and seconds do not include earlier attempts, because chunks in `resume` do not record their cost.
    """

    engine: Engine
    config: FitConfig
    progress: Callable[[FitEvent], None]
    resume: Sequence[TextChunk] = ()
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    tokens: int = 0
    resumed: int = 0

    def __post_init__(self) -> None:
        self._done: dict[str, dict[int, str]] = {}
        for chunk in self.resume:
            self._done.setdefault(chunk.kind, {}).update(zip(chunk.indices, chunk.texts, strict=True))
            self.resumed += len(chunk.indices)
        self._since = time.perf_counter()

    def own_queries(self, texts: Sequence[str], first: int) -> tuple[str, ...]:
        """At most `FitConfig.own_queries` queries that the model invents after the given texts.

        Args:
            first: sample index of the first invented query.
        """
        done = self._done.get(OWN_QUERIES)
        if done is None and self.config.own_queries:
            invented, tokens = invent_queries(self.engine, texts, self.config.own_queries, self.config.seed)
            self.tokens += tokens
            done = self._done[OWN_QUERIES] = {first + i: text for i, text in enumerate(invented)}
            self.report("responses", 0, len(invented), TextChunk(OWN_QUERIES, tuple(done), tuple(invented)))
        return tuple((done or {}).values())

    def texts(self, stage: Stage, requests: Sequence[TextRequest]) -> dict[str, dict[int, str]]:
        """Generates the missing texts, chunk by chunk.

        All kinds share the engine's batch. Requests with the largest `max_tokens` come first, so that shorter ones run
        at the same time.

        Returns: kind → sample index → text.
        """
        missing = [r for r in requests if r.index not in self._done.setdefault(r.kind, {})]
        missing.sort(key=lambda r: -(r.max_tokens or self.config.answer_tokens))
        total, done = len(requests), len(requests) - len(missing)
        self.report(stage, done, total)
        for start in range(0, len(missing), self.config.chunk_size):
            part = missing[start : start + self.config.chunk_size]
            self._make(part)
            made: dict[str, list[int]] = {}
            for request in part:
                made.setdefault(request.kind, []).append(request.index)
            for kind, indices in made.items():
                done += len(indices)
                chunk = TextChunk(kind, tuple(indices), tuple(self._done[kind][i] for i in indices))
                self.report(stage, done, total, chunk)
        kinds = dict.fromkeys(r.kind for r in requests)
        return {kind: {r.index: self._done[kind][r.index] for r in requests if r.kind == kind} for kind in kinds}

    def give(self, kind: str, texts: Mapping[int, str]) -> None:
        """Adds texts that need not be generated: the answers of ground-truth pairs."""
        self._done.setdefault(kind, {}).update(texts)

    def given(self, kind: str) -> Mapping[int, str]:
        """The available texts of one kind, by sample index."""
        return self._done.get(kind, {})

    def report(self, stage: Stage, done: int, total: int, chunk: TextChunk | None = None) -> None:
        """Calls `progress` and adds the time since the last report to the stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._since
        self.progress(FitEvent(stage, done, total, chunk))
        self._since = time.perf_counter()  # excludes the callback's own time, a database write

    def _make(self, part: Sequence[TextRequest]) -> None:
        config = self.config
        completions = self.engine.generate(
            [
                GenerationRequest(
                    r.prompt,
                    max_tokens=r.max_tokens or config.answer_tokens,
                    temperature=config.temperature,
                    seed=row_seed(config.seed, r.index, r.salt),
                    stop=self.engine.prompt_format.stop,
                    edit=r.edit,
                )
                for r in part
            ]
        )
        for request, completion in zip(part, completions, strict=True):
            # Leading white space stays, because it is part of the answer's first token.
            self._done[request.kind][request.index] = clean(completion.text.rstrip())
            self.tokens += len(completion.token_ids)
