"""The settings that say which model runs and how are shared by the API and the workers, and reach the engine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignez_core.engines.load import load_engine
from alignez_core.engines.process.engine import ProcessEngine
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.errors import InvalidInput, ModelNotFound
from alignez_core.models.catalogue import CATALOGUE
from api.settings import ApiSettings
from profiles.settings import ModelSettings, read_settings
from worker.engine import load_engine as load_worker_engine
from worker.settings import WorkerSettings

PROCESSES = [
    pytest.param(lambda: load_engine(ApiSettings().engine_options()), "API", id="api"),
    pytest.param(lambda: load_worker_engine(WorkerSettings()), "WORKER", id="worker"),
]


class Loaded(Exception):
    """Carries the arguments that the engine was to be loaded with."""


def arguments(load: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def refuse(path: str, **given: Any) -> None:
        raise Loaded({"path": path, **given})

    for engine in (ProcessEngine, TransformersEngine):
        monkeypatch.setattr(engine, "load", refuse)
    with pytest.raises(Loaded) as raised:
        load()
    given: dict[str, Any] = raised.value.args[0]
    return given


@pytest.mark.parametrize(("load", "process"), PROCESSES)
def test_mlp_path_and_prompt_format_reach_the_engine_of_either_process(
    load: Callable[[], object], process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(load, monkeypatch)
    assert (given["mlp_path"], given["prompt_format"]) == (None, "auto")
    monkeypatch.setenv("ALIGNEZ_MLP_PATH", "model.blocks.{layer}.ffn")
    monkeypatch.setenv("ALIGNEZ_PROMPT_FORMAT", "plain")
    given = arguments(load, monkeypatch)
    assert (given["mlp_path"], given["prompt_format"]) == ("model.blocks.{layer}.ffn", "plain")
    monkeypatch.setenv(f"ALIGNEZ_{process}_MLP_PATH", "own.{layer}")
    assert arguments(load, monkeypatch)["mlp_path"] == "own.{layer}"


@pytest.mark.parametrize(("load", "process"), PROCESSES)
def test_a_name_of_the_catalogue_is_looked_up_in_the_cache_of_either_process(
    load: Callable[[], object], process: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = CATALOGUE[0]
    monkeypatch.setenv("ALIGNEZ_MODEL", model.name)
    monkeypatch.setenv("ALIGNEZ_MODEL_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match=f"run `alignez models add {model.name}` first"):
        load()
    (tmp_path / model.sha256 / "model").mkdir(parents=True)
    (tmp_path / model.sha256 / "model" / "config.json").write_text("{}")
    given = arguments(load, monkeypatch)
    assert (given["path"], given["dtype"]) == (str(tmp_path / model.sha256 / model.name), "auto")


@pytest.mark.parametrize("name", [name for name in ModelSettings.model_fields if name != "prompt_format"])
def test_every_setting_of_the_model_is_taken_for_all_processes_and_for_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, own = {"engine": ("vllm", "transformers"), "vllm_compile": ("false", "true")}.get(name, ("3", "5"))
    monkeypatch.setenv(f"ALIGNEZ_{name.upper()}", shared)
    monkeypatch.setenv(f"ALIGNEZ_API_{name.upper()}", own)
    api, worker = ApiSettings(), WorkerSettings()
    assert [str(getattr(each, name)).lower() for each in (api, worker)] == [own, shared]
    assert api.engine_options() != worker.engine_options()


def test_an_unknown_prompt_format_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNEZ_PROMPT_FORMAT", "poem")
    for settings in (ApiSettings, WorkerSettings):
        with pytest.raises(ValidationError, match="poem"):
            settings()


@pytest.mark.parametrize(("load", "process"), PROCESSES)
def test_vllm_where_it_is_not_installed_is_one_line_that_says_how_to_get_it(
    load: Callable[[], object], process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "alignez_core.engines.vllm.engine", None)
    monkeypatch.setenv(f"ALIGNEZ_{process}_ENGINE", "vllm")
    with pytest.raises(ModelNotFound, match=r"^the vllm engine needs vLLM 0.32 .* see `make setup-vllm`$"):
        load()


def test_the_fake_engine_takes_its_sizes_from_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNEZ_MODEL", "fake:?n_layers=3&hidden_size=8")
    for settings in (ApiSettings(), WorkerSettings()):
        info = load_engine(settings.engine_options()).info
        assert (info.name, info.n_layers, info.hidden_size) == ("fake", 3, 8)
    monkeypatch.setenv("ALIGNEZ_MODEL", "fake:?n_layers=three")
    with pytest.raises(InvalidInput, match="fake:\\?n_layers=three"):
        load_engine(ApiSettings().engine_options())


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [("ALIGNEZ_THREADS", "0", "greater than or equal to 1"), ("ALIGNEZ_API_THREADS", "0", "greater than or equal to 1"),
     ("ALIGNEZ_API_PORT", "x", "valid integer"), ("ALIGNEZ_ENGINE", "llama", "'transformers' or 'vllm'"),
     ("ALIGNEZ_API_JUDGES", "openai", "must be JSON"), ("ALIGNEZ_JUDGES", "openai", "must be JSON"),
     ("ALIGNEZ_API_CORS_ORIGINS", "https://a.example", "must be JSON")],
)  # fmt: skip
def test_a_wrong_setting_is_one_line_with_the_variable_that_was_set(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=f"^alignez: {variable}: .*{says}"):
        read_settings(ApiSettings)
