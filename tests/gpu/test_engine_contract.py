"""The engine contract on a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.transformers_engine import TransformersEngine
from tests.core.engines.contract import EngineContract
from tests.core.engines.test_isolation import requests_with_profiles
from tests.core.engines.tiny_models import byte_tokenizer, tiny_engine, tiny_model

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


def test_the_compiled_step_gives_the_tokens_of_the_uncompiled_one_while_rows_come_and_go(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    """Ragged rows of every method, twice, so that recorded graphs are replayed and dropped as the cache grows."""
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    requests: list[GenerationRequest] = requests_with_profiles(32, 16)
    with TransformersEngine.load(tmp_path, device="cuda", compile=True) as compiled:
        assert compiled._runner.programs == 4
        for _ in range(2):
            for some in (requests[:3], requests, requests[:1]):
                assert compiled.generate(some) == engine.generate(some)
        assert compiled._runner.programs == 4
