"""A GGUF file becomes a directory with the same weights, and what cannot be read is said in one line."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.errors import ModelNotFound
from alignez_core.models.gguf import convert
from alignez_core.models.gguf_header import read_header
from tests.core.models.tiny_gguf import CHAT_TEMPLATE, LAYERS, write_gguf


def refusal(file: Path, target: Path) -> str:
    target.mkdir()
    with pytest.raises(ModelNotFound) as raised:
        convert(file, target)
    message = str(raised.value)
    assert "\n" not in message
    assert str(file) in message
    return message


@pytest.fixture(scope="module")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("converted")
    convert(tiny, directory)
    return directory


def test_the_directory_holds_the_dequantised_weights_in_bfloat16(tiny: Path, converted: Path) -> None:
    weights = load_file(converted / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    tensors = {tensor.name: tensor for tensor in GGUFReader(tiny).tensors}
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        source = tensors[theirs]
        expected = torch.from_numpy(dequantize(source.data, source.tensor_type).copy()).to(torch.bfloat16)
        assert torch.equal(weights[ours], expected)


def test_the_directory_is_complete_and_plain(converted: Path) -> None:
    config = AutoConfig.from_pretrained(converted)
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.num_hidden_layers == LAYERS
    assert not hasattr(config, "quantization_config")
    assert (converted / "generation_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.decode(tokenizer.encode("hello", add_special_tokens=False)) == "hello"
    with TransformersEngine.load(converted) as engine:
        assert engine.info.prompt_format == "chat"
        assert len(engine.generate([GenerationRequest("hello", 4, 0, ignore_eos=True)])[0].token_ids) == 4


def test_the_header_says_architecture_and_quantisations(tiny: Path) -> None:
    header = read_header(tiny)
    assert (header.architecture, header.quantisations) == ("llama", ("F32", "Q8_0"))
    assert header.tensors == 2 + LAYERS * 9


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.05, 0.2, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused_wherever_it_ends(tiny: Path, tmp_path: Path, share: float) -> None:
    content = tiny.read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(content[: max(5, int(len(content) * share))])
    assert "damaged or truncated" in refusal(file, tmp_path / "out")


@pytest.mark.parametrize("at", [8, 16, 24])
def test_a_false_length_is_refused_at_once(tiny: Path, tmp_path: Path, at: int) -> None:
    """Number of tensors, number of entries, length of the first key."""
    content = bytearray(tiny.read_bytes())
    content[at : at + 8] = struct.pack("<Q", 2**60)
    file = tmp_path / "false.gguf"
    file.write_bytes(content)
    assert "damaged or truncated" in refusal(file, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file", b"GGU"])
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(content)
    assert "is no GGUF file; give a .gguf file" in refusal(file, tmp_path / "out")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tmp_path / "none.gguf", tmp_path / "out")


def test_an_old_version_is_refused(tiny: Path, tmp_path: Path) -> None:
    content = bytearray(tiny.read_bytes())
    content[4:8] = struct.pack("<I", 1)
    file = tmp_path / "old.gguf"
    file.write_bytes(content)
    assert "GGUF version 1 is not one of" in refusal(file, tmp_path / "out")


def test_an_unsupported_architecture_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "odd.gguf", architecture="oddnet")
    message = refusal(file, tmp_path / "out")
    assert "GGUF architecture 'oddnet'" in message
    assert "give a model directory or a hub id instead" in message


@pytest.mark.parametrize(("number", "says"), [(28, "quantisation F64"), (9999, "unknown quantisation 9999")])
def test_an_unsupported_quantisation_is_named(tiny: Path, tmp_path: Path, number: int, says: str) -> None:
    """The type number of `output_norm.weight`, which has one dimension, stands after its name, rank and dimension."""
    content = bytearray(tiny.read_bytes())
    name = b"output_norm.weight"
    at = content.index(name) + len(name) + 4 + 8
    assert struct.unpack_from("<I", content, at) == (GGMLQuantizationType.F32,)
    content[at : at + 4] = struct.pack("<I", number)
    file = tmp_path / "odd.gguf"
    file.write_bytes(content)
    message = refusal(file, tmp_path / "out")
    assert says in message
    assert "take another GGUF of this model" in message


def test_a_missing_tensor_is_named_instead_of_filled_with_random_numbers(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "lacking.gguf", without="blk.1.ffn_down.weight")
    assert "model.layers.1.mlp.down_proj.weight" in refusal(file, tmp_path / "out")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "infinite.gguf", fill=float("nan"))
    assert "holds infinity or NaN" in refusal(file, tmp_path / "out")
