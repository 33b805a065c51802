"""The effect that the design asks for, on the shipped model: all eight personas, `transport` as shipped."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest

from alignez_core import nano
from alignez_core.engines.transformers_engine import TransformersEngine
from alignez_core.nano.evaluate import Bench, Shares, make_bench, shares

QUERIES = 40
FIT_QUERIES = 64
SALT = 0


@pytest.fixture(scope="module")
def benches() -> Iterator[list[Bench]]:
    held_out = nano.held_out_queries()
    asked = held_out[:: len(held_out) // QUERIES][:QUERIES]  # spread, so that they ask about many topics
    with TransformersEngine.load(nano.MODEL_DIR) as engine:
        yield [make_bench(engine, persona, asked, FIT_QUERIES, seed=0, responses=0) for persona in nano.PERSONAS]


def measured(bench: Bench, strength: float) -> Shares:
    prompts = [bench.engine.prompt_format.wrap(query) for query in bench.queries]
    return shares(bench.answer(prompts, bench.transport(strength), SALT), bench.persona)


@pytest.mark.slow
def test_transport_moves_every_persona_and_is_a_dose(benches: list[Bench]) -> None:
    full = {bench.persona.name: measured(bench, 1.0) for bench in benches}
    preferred = {name: found["preferred"] for name, found in full.items()}
    assert len(preferred) == 8
    assert statistics.fmean(preferred.values()) >= 0.75, preferred
    assert min(preferred.values()) >= 0.40, preferred
    assert statistics.fmean(found["dispreferred"] for found in full.values()) <= 0.03, full

    prompts = [benches[0].engine.prompt_format.wrap(query) for query in benches[0].queries]
    bare = benches[0].answer(prompts, None, SALT)
    for bench in benches[:2]:
        none, half = measured(bench, 0.0), measured(bench, 0.5)
        assert none == shares(bare, bench.persona)  # strength 0 is the base model
        assert none["preferred"] < half["preferred"] < preferred[bench.persona.name], (none, half)
    unrecognised = statistics.fmean(found["none"] for found in full.values())
    assert unrecognised <= shares(bare, benches[0].persona)["none"] + 0.05, full
