"""What "auto" chooses, without a GPU or a particular CPU at hand."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from alignez_core.engines.common import dtypes
from alignez_core.engines.common.dtypes import choose_dtype, parameter_count
from alignez_core.errors import InvalidInput
from alignez_core.models import persona_nano
from tests.core.engines.tiny_models import tiny_model

LARGE = LlamaConfig(num_hidden_layers=2, hidden_size=1024, intermediate_size=4096, vocab_size=8000)


def machine(patch: pytest.MonkeyPatch, *flags: str, speedup: float = 1.0) -> None:
    patch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(flags, True))
    patch.setattr(dtypes, "bfloat16_speedup", lambda: speedup)


@pytest.mark.parametrize(
    ("flags", "speedup", "chosen"),
    [
        (("amx_bf16", "avx512_bf16"), 4.0, "bfloat16"),
        (("avx512_bf16",), 1.8, "bfloat16"),
        (("avx512_bf16",), 0.56, "float32"),
        (("avx512_f",), 4.0, "float32"),
        ((), 4.0, "float32"),
    ],
)
def test_on_a_cpu_bfloat16_needs_the_instructions_and_the_speed(
    flags: tuple[str, ...], speedup: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, *flags, speedup=speedup)
    assert choose_dtype("auto", LARGE, "cpu") == chosen


@pytest.mark.parametrize("config", [AutoConfig.from_pretrained(persona_nano.MODEL_DIR), tiny_model("llama").config])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_small_models_compute_in_float32(
    config: PreTrainedConfig, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, "amx_bf16", speedup=4.0)
    cuda(monkeypatch, bfloat16=True)
    assert choose_dtype("auto", config, device) == "float32"


def cuda(patch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation)


@pytest.mark.parametrize(("supported", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_on_cuda_bfloat16_must_not_be_emulated(supported: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, supported)
    assert choose_dtype("auto", LARGE, "cuda") == chosen


def test_other_devices_compute_in_float32() -> None:
    assert choose_dtype("auto", LARGE, "mps") == "float32"


@pytest.mark.parametrize("named", ["float32", "bfloat16", "float16"])
def test_a_named_format_is_taken_as_it_is(named: str) -> None:
    assert choose_dtype(named, LARGE, "cpu") == named


def test_an_unknown_format_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidInput, match="'int3' is not one of auto, float32, bfloat16, float16"):
        choose_dtype("int3", LARGE, "cpu")


def test_parameters_are_counted_without_making_them() -> None:
    model = tiny_model("llama")
    assert parameter_count(model.config) == sum(each.numel() for each in model.parameters())


def test_the_speed_is_measured_here() -> None:
    assert 0.01 < dtypes.bfloat16_speedup() < 100
