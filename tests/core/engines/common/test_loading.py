"""Loading a directory works, and what is wrong with it is said in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignez_core.engines.base import GenerationRequest, SamplingDefaults
from alignez_core.engines.common.loading import context_length, fingerprint
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.engines.slots.mlp_modules import MLP_PATHS
from alignez_core.errors import InvalidInput, ModelNotFound, UnknownArchitecture
from tests.core.engines.tiny_models import ARCHITECTURES, byte_tokenizer, tiny_engine, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny_model("llama").save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny-llama"))


def one_line(path: Path | str, **settings: Any) -> str:
    with pytest.raises(ModelNotFound) as raised:
        TransformersEngine.load(path, **settings)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_directory_gives_the_tokens_of_the_model_that_was_saved(saved: Path) -> None:
    request = GenerationRequest("hello", 6, 0)
    with TransformersEngine.load(saved) as loaded, tiny_engine() as own:
        assert loaded.generate([request]) == own.generate([request])
        assert loaded.info.name == "tiny-llama"
        assert loaded.info.dtype == "float32"
        assert loaded.info.prompt_format == "plain"
        assert len(loaded.info.fingerprint) == 64


def test_sampling_defaults_come_from_the_generation_config(directory: Path) -> None:
    with TransformersEngine.load(directory) as loaded:
        assert loaded.info.sampling_defaults == SamplingDefaults()
        free = loaded.generate([GenerationRequest("hello", 6, 0, ignore_eos=True)])[0].token_ids
    given = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "do_sample": True, "eos_token_id": [1, free[3]]}
    (directory / "generation_config.json").write_text(json.dumps(given))
    with TransformersEngine.load(directory) as loaded:
        assert loaded.info.sampling_defaults == SamplingDefaults(0.6, 0.9, 20)
        (ended,) = loaded.generate([GenerationRequest("hello", 6, 0)])
        assert ended.token_ids == free[: free.index(free[3]) + 1]


def test_bfloat16_runs_with_edits_in_float32(saved: Path) -> None:
    from tests.core.engines.tiny_models import plan

    with TransformersEngine.load(saved, dtype="bfloat16") as loaded:
        requests = [GenerationRequest("hello", 6, 0, ignore_eos=True, edit=edit) for edit in (None, plan("alignez"))]
        plain, edited = loaded.generate(requests)
        assert loaded.info.dtype == "bfloat16"
        assert plain.token_ids != edited.token_ids
        assert loaded.represent(["hello"]).dtype == torch.float32


def test_the_fingerprint_follows_content_only(directory: Path) -> None:
    before = fingerprint(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"transformers_version": "0", "_name_or_path": "x"}))
    assert fingerprint(directory) == before
    (directory / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert fingerprint(directory) != before
    (directory / "config.json").write_text(json.dumps(config))
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(directory) != before


@pytest.mark.parametrize("name", ["/no/such/model", "./no-such-model"])
def test_a_missing_directory_says_what_to_set(name: str) -> None:
    message = one_line(name)
    assert name in message
    assert "ALIGNEZ_MODEL" in message


def test_a_directory_without_configuration_says_so(tmp_path: Path) -> None:
    assert "config.json" in one_line(tmp_path)


def test_a_missing_tokenizer_says_so(directory: Path) -> None:
    for file in directory.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in one_line(directory)


def test_missing_weights_say_so(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    assert str(directory) in one_line(directory)


def test_damaged_weights_say_so(directory: Path) -> None:
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in one_line(directory)


def test_weights_that_lack_a_tensor_are_refused_not_filled_with_noise(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.down_proj.weight" in one_line(directory)


@pytest.mark.parametrize(
    "settings",
    [{"dtype": "int3"}, {"device": "nowhere"}, {"max_slots": 0}, {"max_waiting": -1}, {"prompt_format": "poem"}],
)
def test_settings_out_of_range_are_named(saved: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as raised:
        TransformersEngine.load(saved, **settings)
    assert raised.value.field == next(iter(settings))


def test_every_architecture_that_is_listed_has_a_parity_test() -> None:
    assert set(MLP_PATHS) == set(ARCHITECTURES)


def unlisted_model(kind: str, **settings: Any) -> Callable[..., TransformersEngine]:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    sizes = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes | settings)).eval()
    return partial(TransformersEngine.from_model, model, byte_tokenizer(), "x", name=kind)


def test_an_unknown_architecture_names_what_was_looked_for_and_the_setting() -> None:
    with pytest.raises(UnknownArchitecture, match=r"model\.layers\.\{layer\}\.mlp.*ALIGNEZ_MLP_PATH"):
        unlisted_model("xlnet", d_model=32, n_layer=3, n_head=4, d_inner=48)()
    load = unlisted_model("stablelm", intermediate_size=48, num_key_value_heads=2)
    with pytest.raises(UnknownArchitecture, match=r"no module model\.blocks\.0\.mlp; set ALIGNEZ_MLP_PATH"):
        load(path_of_mlp="model.blocks.{layer}.mlp")
    with pytest.raises(UnknownArchitecture, match=r"ALIGNEZ_MLP_PATH.*layer"):
        load(path_of_mlp="model.layers.mlp")


def test_an_unlisted_architecture_runs_as_it_is_and_with_its_path_given() -> None:
    load = unlisted_model("stablelm", intermediate_size=48, num_key_value_heads=2, initializer_range=0.3)
    with load() as engine:
        assert len(engine.generate([GenerationRequest("abc", 5, 0, ignore_eos=True)])[0].token_ids) == 5
    with load(path_of_mlp="model.layers.{layer}.mlp") as engine:
        assert len(engine.generate([GenerationRequest("abc", 5, 0, ignore_eos=True)])[0].token_ids) == 5


def test_an_unlisted_architecture_with_another_attention_is_refused() -> None:
    load = unlisted_model("bloom", n_head=4, initializer_range=0.3, max_position_embeddings=64)
    with pytest.raises(UnknownArchitecture, match="attention"):
        load(path_of_mlp="transformer.h.{layer}.mlp")


def test_rotary_scalings_that_couple_rows_are_used_up_to_their_original_length() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    assert context_length(tiny_model("llama", rope_parameters=rope).config) == 32
    assert context_length(tiny_model("llama").config) == 128
