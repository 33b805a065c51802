"""The engine contract, and the fit that reads block by block, on a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alignez_core.editing import EditPlan
from alignez_core.engines.base import GenerationRequest, ScoreRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.methods.base import Material
from alignez_core.methods.distill import Distill
from alignez_core.spec.config import FitConfig
from alignez_core.spec.persona import Persona
from alignez_core.spec.samples import Sample
from tests.core.engines.contract import EngineContract
from tests.core.engines.test_isolation import requests_with_profiles
from tests.core.engines.tiny_models import HIDDEN, N_LAYERS, byte_tokenizer, prompts, tiny_engine, tiny_model

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    directory: Path = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    with TransformersEngine.load(directory, device="cuda") as loaded:
        yield loaded


class TestContract(EngineContract):
    pass


def test_edited_rows_give_the_tokens_of_the_cpu(engine: TransformersEngine) -> None:
    requests: list[GenerationRequest] = requests_with_profiles(16, 8)
    with tiny_engine() as cpu:
        assert engine.generate(requests) == cpu.generate(requests)


def test_a_walk_reads_what_the_cpu_reads(engine: TransformersEngine) -> None:
    asked = [ScoreRequest(text, tail) for text, tail in zip(prompts(5, seed=3), prompts(5, seed=4), strict=True)]
    with tiny_engine() as cpu:
        walks = engine.walk(asked), cpu.walk(asked)
        for layer in range(N_LAYERS):
            here, there = (walk.after(layer) for walk in walks)
            torch.testing.assert_close(here.x.cpu(), there.x, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(here.r.cpu(), there.r, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(walks[0].logits().cpu(), walks[1].logits(), atol=1e-3, rtol=1e-3)


def test_distill_fits_the_edit_of_the_cpu(engine: TransformersEngine) -> None:
    """What the edits do, not their rows: singular vectors of nearly equal values may turn."""
    samples = [Sample(i, f"Thing {i}?", Persona("glad", "sad")) for i in range(6)]
    answers = {i: f" It is {i * 7 % 5}{', oh' * (i % 4)}." for i in range(6)}
    config = FitConfig(method="distill", contrast=1.0, layers=(0, 2))

    def fitted(on: TransformersEngine) -> EditPlan:
        [candidate] = Distill().candidates(Material(on, config, samples, help=answers))
        return candidate.edits[0]

    with tiny_engine() as cpu:
        expected = fitted(cpu)
    found = fitted(engine)
    x = torch.randn(16, HIDDEN, generator=torch.Generator().manual_seed(0))
    for layer in expected.layers:
        torch.testing.assert_close(found.apply(x, layer), expected.apply(x, layer), atol=1e-2, rtol=1e-2)


def test_the_compiled_step_gives_the_tokens_of_the_uncompiled_one_while_rows_come_and_go(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    """Ragged rows of every method, twice, so that recorded graphs are replayed and dropped as the cache grows."""
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    requests: list[GenerationRequest] = requests_with_profiles(32, 16)
    with TransformersEngine.load(tmp_path, device="cuda", compile=True) as compiled:
        # Callers cannot tell how often it compiles, except by waiting minutes.
        assert compiled._runner.programs == 4
        for _ in range(2):
            for some in (requests[:3], requests, requests[:1]):
                assert compiled.generate(some) == engine.generate(some)
        assert compiled._runner.programs == 4
