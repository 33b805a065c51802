"""One fit or evaluation under way: the texts it makes, what it need not make again, and its progress.

Chunks of text go out through `progress` as they are finished and come back through `resume` after a crash. Readings and
scores are not stored: they are one deterministic forward pass a text, and cheaper to redo than to store twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine, GenerationRequest
from alignez_core.self_preference import clean, invent_queries, row_seed
from alignez_core.spec.config import FitConfig
from alignez_core.spec.samples import Sample

Stage = Literal["characteristics", "responses", "readings", "fitting", "tuning", "evaluation"]
STAGES: tuple[Stage, ...] = ("characteristics", "responses", "readings", "fitting", "tuning", "evaluation")
OWN_QUERIES = "queries"


@dataclass(frozen=True)
class TextChunk:
    """Generated texts worth keeping across a crash.

    Args:
        kind: names what they are: "queries" (the model's own), "help_characteristics", "harm_characteristics",
            "help_response", "harm_response", or an arm of a comparison ("bare", "tune/…", "edited", …).
        indices: sample indices. texts: one per index.
    """

    kind: str
    indices: tuple[int, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class FitEvent:
    """Progress of one stage: `done` of `total` units of it, and the chunk just finished, if any."""

    stage: Stage
    done: int
    total: int
    chunk: TextChunk | None = None


@dataclass(frozen=True)
class TextRequest:
    """One text to be made.

    Args:
        kind: as `TextChunk.kind`. index: of its sample. prompt: that it continues.
        salt: what its seed derives from beside the index; arms that are compared share it.
    """

    kind: str
    index: int
    prompt: str
    edit: EditPlan | None = None
    salt: str = "answer"
    max_tokens: int | None = None


@dataclass
class FitRun:
    """The running account of one attempt: what is done already, progress, tokens and seconds per stage.

    Tokens and seconds are this attempt's alone: chunks that come back through `resume` do not say what they cost.
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
        """Queries in the manner of the given ones that the model invents, as many as the settings say.

        Args:
            first: index of the first of them.
        """
        done = self._done.get(OWN_QUERIES)
        if done is None and self.config.own_queries:
            invented, tokens = invent_queries(self.engine, texts, self.config.own_queries, self.config.seed)
            self.tokens += tokens
            done = self._done[OWN_QUERIES] = {first + i: text for i, text in enumerate(invented)}
            self.report("responses", 0, len(invented), TextChunk(OWN_QUERIES, tuple(done), tuple(invented)))
        return tuple((done or {}).values())

    def texts(self, stage: Stage, requests: Sequence[TextRequest]) -> dict[str, dict[int, str]]:
        """Makes what is missing, chunk by chunk; returns text by index, by kind.

        All kinds share the engine's batch. The longest answers come first, so that the others run beside them.
        """
        missing = [r for r in requests if r.index not in self._done.setdefault(r.kind, {})]
        missing.sort(key=lambda r: -(r.max_tokens or self.config.answer_tokens))
        total, done = len(requests), len(requests) - len(missing)
        self.report(stage, done, total)
        for part in _chunks(missing, self.config.chunk_size):
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
        """Takes texts as made: a ground-truth pair's answers."""
        self._done.setdefault(kind, {}).update(texts)

    def given(self, kind: str) -> Mapping[int, str]:
        """The texts of one kind that are there."""
        return self._done.get(kind, {})

    def report(self, stage: Stage, done: int, total: int, chunk: TextChunk | None = None) -> None:
        """Tells the progress; the time since the last report is the stage's."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._since
        self.progress(FitEvent(stage, done, total, chunk))
        self._since = time.perf_counter()  # the callback's own time (a database write) is not the stage's

    def reporter(self, stage: Stage) -> Callable[[int, int], None]:
        """`report` of one stage, for work that makes no texts."""
        return lambda done, total: self.report(stage, done, total)

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
            self._done[request.kind][request.index] = clean(completion.text.rstrip())
            self.tokens += len(completion.token_ids)


def _chunks(requests: Sequence[TextRequest], size: int) -> Iterator[Sequence[TextRequest]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


def only(samples: Sequence[Sample], texts: Mapping[int, str]) -> list[Sample]:
    """The samples that have a text of more than white space."""
    return [sample for sample in samples if texts.get(sample.index, "").strip()]
