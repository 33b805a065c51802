"""One fit under way: the texts and representations it makes, what it need not make again, and its progress.

`fit.fit_profile` composes; this holds the account. Chunks of text go out through `progress` as they are finished and
come back through `resume` after a crash. Representations are not chunked: they are one deterministic forward pass per
text, and cheaper to redo than to store twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignez_core.embeddings import LM_ENCODER, from_representation, make_encoder
from alignez_core.engines.base import Engine, Span
from alignez_core.errors import DegenerateEmbeddings
from alignez_core.fit_config import FitQuery, FitSpec
from alignez_core.prompts import SIDES
from alignez_core.self_preference import (
    Sample,
    TextPair,
    generate_characteristics,
    generate_responses,
    given_characteristics,
    given_responses,
    invent_queries,
    make_samples,
    preference_prompt,
)

Stage = Literal["characteristics", "responses", "representations", "directions", "evaluation"]
STAGES: tuple[Stage, ...] = ("characteristics", "responses", "representations", "directions", "evaluation")


@dataclass(frozen=True)
class PairChunk:
    """Generated text worth keeping across a crash.

    Args:
        kind: "queries" (the model's own; `help` holds them), "characteristics" or "responses".
        indices: sample indices, in the fixed order of the spec.
        help, harm: one text per index and side.
    """

    kind: Literal["queries", "characteristics", "responses"]
    indices: tuple[int, ...]
    help: tuple[str, ...]
    harm: tuple[str, ...] = ()


@dataclass(frozen=True)
class FitEvent:
    """Progress of one stage: `done` of `total` samples, and the chunk just finished, if any."""

    stage: Stage
    done: int
    total: int
    chunk: PairChunk | None = None


class FitRun:
    """The running account of one attempt at a fit: what is done already, progress, tokens and seconds per stage.

    Tokens and seconds are this attempt's alone: chunks that come back through `resume` do not say what they cost.
    """

    def __init__(
        self, engine: Engine, spec: FitSpec, progress: Callable[[FitEvent], None], resume: Sequence[PairChunk]
    ) -> None:
        self.engine = engine
        self.spec = spec
        self.progress = progress
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.tokens = 0
        self.empty = 0
        self.resumed = 0
        self.dropped: dict[int, str] = {}  #: sample index → why it is not used
        self.no_room: set[int] = set()  #: samples whose response prompt leaves no room for a response
        self._own: tuple[str, ...] | None = None
        self._done: dict[str, dict[int, TextPair]] = {"characteristics": {}, "responses": {}}
        for chunk in resume:
            self._adopt(chunk)
        self._since = time.perf_counter()

    def samples(self) -> list[Sample]:
        count = self.spec.config.own_queries
        if self._own is None and count:
            texts = self.spec.queries or tuple(FitQuery(p.query) for p in self.spec.pairs)
            invented, tokens = invent_queries(self.engine, texts, count, self.spec.config.seed)
            self._own = tuple(invented)
            self.tokens += tokens
            first = len(self.spec.queries) + len(self.spec.pairs)
            indices = tuple(range(first, first + len(self._own)))
            self.report("characteristics", 0, first + len(self._own), PairChunk("queries", indices, self._own))
        return make_samples(self.spec, self._own or ())

    def sampled(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those that get responses: every given pair, whose answers cost nothing, and of the others as many as asked.

        All of the others if the fit reads responses or is told so, else an even spread.
        """
        config = self.spec.config
        others = [sample for sample in samples if sample.given is None]
        if config.needs_responses or config.responses == "all" or int(config.responses) >= len(others):
            return list(samples)
        count = int(config.responses)
        chosen = {others[i * len(others) // count].index for i in range(count)}
        return [sample for sample in samples if sample.given is not None or sample.index in chosen]

    def texts(
        self,
        kind: Literal["characteristics", "responses"],
        samples: Sequence[Sample],
        characteristics: dict[int, TextPair],
    ) -> dict[int, TextPair]:
        """Generates what is missing, chunk by chunk; returns text pairs by sample index.

        A sample whose response prompt leaves no room for a response has none, and is noted in `no_room`.
        """
        done = self._done[kind]
        for sample in samples:
            if sample.given is not None:
                is_answer = kind == "responses"
                done[sample.index] = (
                    given_responses(self.engine, sample.given) if is_answer else given_characteristics(sample.given)
                )
        missing = [s for s in samples if s.index not in done]
        if kind == "responses":
            self.no_room = {s.index for s in missing if not self._has_room(s, characteristics[s.index])}
            missing = [s for s in missing if s.index not in self.no_room]
        self.report(kind, len(samples) - len(missing), len(samples))
        for chunk in _chunks(missing, self.spec.config.chunk_size):
            if kind == "characteristics":
                pairs = generate_characteristics(self.engine, chunk, self.spec.config)
            else:
                pairs = generate_responses(self.engine, chunk, characteristics, self.spec.config)
            done.update({s.index: pair for s, pair in zip(chunk, pairs, strict=True)})
            self.tokens += sum(pair.tokens for pair in pairs)
            record = PairChunk(
                kind, tuple(s.index for s in chunk), tuple(p.help for p in pairs), tuple(p.harm for p in pairs)
            )
            finished = sum(s.index in done or s.index in self.no_room for s in samples)
            self.report(kind, finished, len(samples), record)
        made = [done[s.index] for s in samples if s.index in done]
        self.empty += sum(not (pair.help and pair.harm) for pair in made)
        return done

    def _has_room(self, sample: Sample, characteristics: TextPair) -> bool:
        """Whether both response prompts and a whole response fit the context."""
        info = self.engine.info
        prompts = (preference_prompt(self.engine, sample, characteristics, side) for side in SIDES)
        longest = max(len(self.engine.tokenize(prompt)) for prompt in prompts)
        return longest + self.spec.config.response_budget(info.context_length) <= info.context_length

    def represent(
        self, samples: Sequence[Sample], characteristics: dict[int, TextPair], responses: dict[int, TextPair]
    ) -> tuple[list[Sample], Tensor, Tensor, Tensor, Tensor]:
        """Representations of all layers: kept samples, embeddings (N, E), and help, harm, plain, each (N, L, D).

        Samples that cannot be read are left out, and `dropped` says why.
        """
        config = self.spec.config
        found = {s.index: self._unreadable(s, characteristics[s.index], responses.get(s.index)) for s in samples}
        self.dropped = {index: reason for index, reason in found.items() if reason is not None}
        kept = [s for s in samples if s.index not in self.dropped]
        if not kept:
            reasons = ", ".join(sorted(set(self.dropped.values())))
            raise DegenerateEmbeddings(
                f"none of the {len(samples)} samples can be used ({reasons}), so nothing to fit on"
            )
        self.report("representations", 0, len(kept))
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        done = 0
        for chunk in _chunks(kept, config.chunk_size):
            plain = self.engine.represent([self.engine.prompt_format.wrap(s.query) for s in chunk])
            if config.needs_responses:
                both = self._represent_responses(chunk, responses)
            else:
                both = self.engine.represent(
                    [preference_prompt(self.engine, s, characteristics[s.index], side) for side in SIDES for s in chunk]
                )
            parts.append((both[: len(chunk)], both[len(chunk) :], plain))
            done += len(chunk)
            self.report("representations", done, len(kept))
        help_, harm, plain = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        encoder = config.query_encoder
        if encoder == LM_ENCODER:
            embeddings = from_representation(plain)
        else:
            embeddings = make_encoder(encoder, self.engine).encode([s.query for s in kept])
        self._charge("representations")
        return kept, embeddings, help_, harm, plain

    def _unreadable(self, sample: Sample, characteristics: TextPair, responses: TextPair | None) -> str | None:
        """Why the texts that this sample's representation is read from cannot be read, if so."""
        if not self.spec.config.needs_responses:
            texts = [preference_prompt(self.engine, sample, characteristics, side) for side in SIDES]
        elif responses is None:
            return "no room for a response in the context"
        elif not (responses.help and responses.harm):
            return "an empty response"
        else:
            prompt = self.engine.prompt_format.wrap(sample.query)
            texts = [prompt + responses.help, prompt + responses.harm]
        longest, limit = max(len(self.engine.tokenize(text)) for text in texts), self.engine.info.context_length
        return f"{longest} tokens to read, the context holds {limit}" if longest > limit else None

    def _represent_responses(self, chunk: Sequence[Sample], responses: dict[int, TextPair]) -> Tensor:
        texts: list[list[int]] = []
        spans: list[Span] = []
        last_only = self.spec.config.representation == "response_last"
        for side in SIDES:
            for sample in chunk:
                prompt = self.engine.prompt_format.wrap(sample.query)
                start = len(self.engine.tokenize(prompt))
                # Tokenised together, as the model would see it; the boundary is the prompt's own length.
                whole = self.engine.tokenize(prompt + getattr(responses[sample.index], side))
                texts.append(whole)
                end = len(whole)
                spans.append(Span(end - 1 if last_only else min(start, end - 1), end))
        return self.engine.represent(texts, spans)

    def report(self, stage: Stage, done: int, total: int, chunk: PairChunk | None = None) -> None:
        """Tells the progress; the time since the last report is the stage's."""
        self._charge(stage)
        self.progress(FitEvent(stage, done, total, chunk))
        self._since = time.perf_counter()  # the callback's own time (a database write) is not the stage's

    def _charge(self, stage: Stage) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self._since
        self._since = now

    def _adopt(self, chunk: PairChunk) -> None:
        if chunk.kind == "queries":
            self._own = chunk.help
            return
        for index, help_, harm in zip(chunk.indices, chunk.help, chunk.harm, strict=True):
            self._done[chunk.kind][index] = TextPair(help_, harm)
        self.resumed += len(chunk.indices)


def _chunks(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
