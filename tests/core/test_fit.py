"""fit_profile on persona-nano: every method from end to end, repeated, resumed and stopped."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NoReturn

import pytest
import torch

from alignez_core.engines.base import Completion, GenerationRequest, ScoreRequest
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.errors import (
    DegenerateEmbeddings,
    EngineCannotWalk,
    FitCancelled,
    LayerOutOfRange,
    TooFewSamples,
)
from alignez_core.fit import FittedProfile, fit_profile
from alignez_core.fit_run import FitEvent, TextChunk
from alignez_core.methods import method_of
from alignez_core.models import persona_nano
from alignez_core.proof import arms, report
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import METHODS
from alignez_core.spec.persona import FitQuery, FitSpec, GivenPair, Persona

Whole = Callable[[str], tuple[FittedProfile, list[FitEvent]]]
PERSONA = Persona("cheerful", "gloomy")
BANK = tuple(persona_nano.query_bank()[:40])
SMALL: dict[str, Any] = {"answers": 5, "tune_queries": 2, "held_out_queries": 4, "answer_tokens": 8, "chunk_size": 12}
GROUPS = tuple(FitQuery(text, *(("formal", "slang") if i % 2 else ())) for i, text in enumerate(BANK[:16]))
PAIRS = tuple(
    GivenPair(text, f"Yay, number {i} is a joy to everyone!", f"Sigh, number {i} is a burden.")
    for i, text in enumerate(BANK[:24])
)


def spec(method: str = "distill", **settings: Any) -> FitSpec:
    return FitSpec(PERSONA, bank=BANK, config=FitConfig(**{**SMALL, "method": method, **settings}))


SPECS: dict[str, FitSpec] = {
    "auto": spec("auto"),
    "distill": spec(contrast=1.0, contrast_form="full"),
    "distill, groups": replace(spec(contrast=0.5, contrast_form="full", neighbors=3), queries=GROUPS, bank=()),
    "distill, pairs": replace(spec(contrast=1.0, contrast_form="full"), pairs=PAIRS),
    "alignez": spec("alignez", neighbors=3, characteristics_tokens=8),
    "alignez, one plan": spec("alignez", conditional=False, layers=2, characteristics_tokens=8),
    "alignez, by answers": spec("alignez", neighbors=3, representation="response_mean", characteristics_tokens=8),
    "caa": spec("caa", layers=(4,)),
    "caa, pairs": replace(spec("caa", layers=(4,)), pairs=PAIRS, bank=()),
    "transport": spec("transport"),
    "prompt": spec("prompt"),
    "urial": spec("urial"),
}


@pytest.fixture(scope="module", autouse=True)
def short_proof() -> Iterator[None]:
    """A proof of few and short answers: what is proven is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms, "LONG_TOKENS", 16)
        patch.setattr(report, "HARMFUL", report.HARMFUL[:1])
        patch.setattr(report, "NEUTRAL", report.NEUTRAL[:1])
        patch.setattr(report, "_DOSE_QUERIES", 1)
        patch.setattr(report, "_KL_QUERIES", 1)
        yield


class CountingEngine:
    """An engine that keeps the requests it was asked to complete."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.requests: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self.requests += requests
        completions: list[Completion] = self._engine.generate(requests)
        return completions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def fit(engine: Any, spec: FitSpec, resume: Sequence[TextChunk] = ()) -> tuple[FittedProfile, list[FitEvent]]:
    events: list[FitEvent] = []
    return fit_profile(engine, spec, events.append, resume), events


@pytest.fixture(scope="module")
def whole(nano_engine: TransformersEngine) -> Whole:
    """The fit of one of `SPECS`, made once."""
    return cache(lambda name: fit(nano_engine, SPECS[name]))


def chunks_of(events: Sequence[FitEvent]) -> list[TextChunk]:
    return [event.chunk for event in events if event.chunk is not None]


#: Run by default; the others are as long and much like them.
QUICK = ("auto", "distill", "distill, groups", "alignez", "prompt")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SPECS]
)
def test_a_fit_resumed_from_half_its_chunks_is_the_whole_fit_and_makes_no_text_twice(
    nano_engine: TransformersEngine, whole: Whole, name: str
) -> None:
    fitted, events = whole(name)
    chunks = chunks_of(events)
    made = Counter(chunk.kind for chunk in chunks for _ in chunk.indices)
    half = chunks[: len(chunks) // 2]
    resumed, later = fit(nano_engine, SPECS[name], half)
    assert resumed.sha256 == fitted.sha256
    assert resumed.quality == fitted.quality
    assert resumed.choice["chosen"] == fitted.choice["chosen"]
    assert resumed.diagnostics["last_attempt"]["resumed_texts"] == sum(len(c.indices) for c in half)
    assert Counter(c.kind for c in [*half, *chunks_of(later)] for _ in c.indices) == made

    # The stages end, in order, and each reports its progress.
    last = {event.stage: (event.done, event.total) for event in events}
    assert all(done == total for done, total in last.values()), last
    # What no method reads is not made.
    reads = method_of(SPECS[name].config.method).needs(SPECS[name].config)
    assert ("help_characteristics" in made) == reads.characteristics == name.startswith("alignez")
    assert ("harm_response" in made) <= reads.harm_answers
    assert reads.harm_answers == (name.startswith("caa") or name == "alignez, by answers")

    # Stored as JSON and read back.
    assert FitConfig.from_dict(json.loads(json.dumps(fitted.config.to_dict()))) == fitted.config
    json.dumps([fitted.report, fitted.choice, fitted.diagnostics])
    assert fitted.method in METHODS
    assert fitted.method != "auto"
    assert fitted.config.method == fitted.method
    assert (fitted.quality == "weak") == bool(fitted.quality_reasons)
    assert (fitted.prefix is not None) == (fitted.method in ("prompt", "urial"))
    assert bool(fitted.edits) == (fitted.method not in ("prompt", "urial"))


@pytest.mark.parametrize("name", ["auto", "alignez", pytest.param("caa", marks=pytest.mark.slow)])
def test_a_fit_stops_at_the_beginning_of_every_stage(nano_engine: TransformersEngine, whole: Whole, name: str) -> None:
    _, events = whole(name)
    assert stopped_at(nano_engine, name, events[1].stage, ()) == 1
    for stage in dict.fromkeys(event.stage for event in events):  # the texts are there already, to be quick
        assert stopped_at(nano_engine, name, stage, chunks_of(events)) >= 1


def stopped_at(engine: Any, name: str, stage: str, resume: Sequence[TextChunk]) -> int:
    """Cancels a fit when it comes to a stage; the number of events of that stage, which should be one."""
    seen = 0

    def cancel(event: FitEvent) -> None:
        nonlocal seen
        if event.stage == stage:
            seen += 1
            raise FitCancelled("stopped")

    with pytest.raises(FitCancelled):
        fit_profile(engine, SPECS[name], cancel, resume)
    assert not [thread for thread in threading.enumerate() if thread.name == "alignez-block-pass"]
    return seen


def test_the_hash_follows_the_content(nano_engine: TransformersEngine, whole: Whole) -> None:
    one, _ = whole("distill")
    other, _ = fit(nano_engine, replace(SPECS["distill"], config=replace(SPECS["distill"].config, seed=1)))
    prefix, _ = whole("prompt")
    assert len({one.sha256, other.sha256, prefix.sha256}) == 3


def test_groups_of_own_phrases_have_a_plan_each_and_are_looked_up(
    nano_engine: TransformersEngine, whole: Whole
) -> None:
    given = SPECS["distill, groups"]
    fitted, _ = whole("distill, groups")
    assert len(fitted.edits) == 2
    assert fitted.plan(group=0) != fitted.plan(group=1)
    assert fitted.embeddings.shape[0] == len(fitted.fit_samples)
    torch.testing.assert_close(fitted.embeddings.norm(dim=1), torch.ones(len(fitted.fit_samples)))
    assert [s.persona.preferred for s in fitted.samples[:2]] == ["cheerful", "formal"]
    one, _ = fit(nano_engine, replace(given, config=replace(given.config, conditional=False)))
    assert len(one.edits) == 1
    assert len(one.embeddings) == 0


def test_without_own_phrases_a_request_looks_nothing_up_but_for_the_paper_s_method(
    nano_engine: TransformersEngine, whole: Whole
) -> None:
    fitted, _ = whole("distill")
    assert fitted.embeddings.shape == (0, nano_engine.info.hidden_size)
    assert fitted.neighbor_rows is None
    paper, _ = whole("alignez")
    assert paper.neighbor_rows is not None
    assert paper.neighbor_rows.samples == tuple(s.index for s in paper.fit_samples)
    assert paper.neighbor_rows.layers == paper.layers
    assert len(paper.embeddings) == len(paper.fit_samples)
    assert len(paper.layers) == 5


def test_given_pairs_are_fitted_on_and_the_prompted_arm_answers_for_itself(whole: Whole) -> None:
    fitted, events = whole("caa, pairs")
    made = {i for chunk in chunks_of(events) if chunk.kind == "help_response" for i in chunk.indices}
    splits = {s.index: s.split for s in fitted.samples}
    assert {splits[i] for i in made} == {"tune", "held_out"}
    assert not any(row["prompt"].startswith("Yay, number") for row in fitted.report["samples"])
    assert not any("swapped" in reason for reason in fitted.quality_reasons)


def test_swapped_pairs_are_told(nano_engine: TransformersEngine) -> None:
    swapped = tuple(GivenPair(p.query, p.dispreferred, p.preferred) for p in PAIRS)
    fitted, _ = fit(nano_engine, replace(SPECS["distill, pairs"], pairs=swapped))
    assert fitted.quality == "weak"
    assert any("sides look swapped" in reason for reason in fitted.quality_reasons)


def test_what_does_not_fit_the_context_is_left_out_with_the_reason(nano_engine: TransformersEngine) -> None:
    pairs = [*PAIRS]
    pairs[3] = GivenPair("What is thing 3?", "Great, truly great! " * 200, "Bad.")
    queries = (FitQuery("Why oh why? " * 300),)
    fitted, _ = fit(nano_engine, replace(SPECS["distill, pairs"], queries=queries, pairs=tuple(pairs)))
    assert sorted(fitted.dropped) == [0, 4]
    assert "no room for an answer" in fitted.dropped[0]
    assert "given answer" in fitted.dropped[4]
    assert fitted.diagnostics["dropped_queries"] == 2
    with pytest.raises(DegenerateEmbeddings, match="no query leaves room"):
        fit(nano_engine, FitSpec(PERSONA, queries, config=FitConfig(method="prompt")))


def test_invented_queries_come_after_the_given_ones(nano_engine: TransformersEngine) -> None:
    own = replace(
        spec(contrast=0.0, own_queries=3, held_out_queries=0, tune_queries=0), queries=tuple(map(FitQuery, BANK[:6]))
    )
    fitted, events = fit(nano_engine, own)
    kinds = [chunk.kind for chunk in chunks_of(events)]
    assert kinds[0] == "queries"
    assert [s.origin for s in fitted.samples[6:]] == ["invented"] * len(fitted.samples[6:])
    resumed, _ = fit(nano_engine, own, chunks_of(events)[:1])
    assert resumed.sha256 == fitted.sha256


def test_without_held_out_queries_a_version_is_weak_and_says_what_is_missing(nano_engine: TransformersEngine) -> None:
    fitted, _ = fit(nano_engine, spec(contrast=0.0, held_out_queries=0))
    assert fitted.quality == "weak"
    assert "0 held-out queries are too few" in fitted.quality_reasons[0]


def test_specs_that_do_not_fit_are_refused_before_anything_is_generated(nano_engine: TransformersEngine) -> None:
    engine = CountingEngine(nano_engine)
    with pytest.raises(TooFewSamples, match=r"neighbors=6 .* 5 "):
        fit(engine, spec("alignez", neighbors=6))
    with pytest.raises(TooFewSamples, match="neighbors=11"):
        fit(engine, replace(spec("auto", neighbors=11), queries=GROUPS, bank=()))
    with pytest.raises(LayerOutOfRange, match="layer 8"):
        fit(engine, spec(layers=(0, 8)))
    assert engine.requests == []


def test_an_engine_that_cannot_halt_between_blocks_says_which_can() -> None:
    class Closed(FakeEngine):
        def walk(self, requests: Sequence[ScoreRequest], copies: int = 1) -> NoReturn:
            raise EngineCannotWalk("this engine")

    with pytest.raises(EngineCannotWalk, match="ALIGNEZ_WORKER_ENGINE=transformers"):
        fit(Closed(), spec())
    fitted, _ = fit(Closed(), spec("prompt"))
    assert fitted.report["kl"] is None


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_on_the_fake_engine(method: str) -> None:
    """So that the tests of worker and API need no model."""
    fitted, _ = fit(FakeEngine(), spec(method, neighbors=3))
    again, _ = fit(FakeEngine(), spec(method, neighbors=3))
    assert fitted.sha256 == again.sha256
