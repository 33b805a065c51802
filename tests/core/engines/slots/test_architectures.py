"""Architectures that no table lists run as they come, edited where the block adds to its residual stream, or are
refused in one line that is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots import attention
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.engines.slots.mlp_modules import (
    MLP_PATHS,
    candidate_paths,
    find_blocks,
    find_mlp_modules,
    output_tensor,
    residual_factor,
)
from alignez_core.engines.slots.self_check import find_site
from alignez_core.errors import UnknownArchitecture
from alignez_core.hooks import edited_forward
from tests.core.engines.tiny_models import (
    ARCHITECTURES,
    HIDDEN,
    N_LAYERS,
    UNLISTED,
    byte_tokenizer,
    plan,
    prompts,
    tiny_engine,
    tiny_model,
)

NEW_TOKENS = 10
ALL = {**ARCHITECTURES, **UNLISTED}
EDITS = [None, plan("alignez", 1), plan("transport", 2, steps=3), plan("additive", 3, positions="all")]
#: Where a block norms what its MLP made before adding it.
NORMED = {
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "olmo3"), "model.layers.{layer}.post_feedforward_layernorm"),
    "gemma3": "model.language_model.layers.{layer}.post_feedforward_layernorm",
    "glm4": "model.layers.{layer}.post_mlp_layernorm",
}


def greedy_of_hugging_face(model: PreTrainedModel, prompt: list[int], edit: Any) -> list[int]:
    """Greedy tokens of `generate` with the edit applied by `edited_forward`."""
    ids = torch.tensor([prompt])
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    with torch.no_grad(), edited_forward(model, [edit]):
        out = cast(Any, model).generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None, **length
        )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ALL)
def test_edited_generation_over_slots_is_hugging_face_s(kind: str) -> None:
    rows = prompts(len(EDITS), seed=3, longest=30)
    expected = [greedy_of_hugging_face(tiny_model(kind), row, edit) for row, edit in zip(rows, EDITS, strict=True)]
    with tiny_engine(kind) as engine:
        requests = [
            GenerationRequest(row, NEW_TOKENS, 0, ignore_eos=True, edit=edit)
            for row, edit in zip(rows, EDITS, strict=True)
        ]
        got = [list(completion.token_ids) for completion in engine.generate(requests)]
        bare = engine.generate([GenerationRequest(row, NEW_TOKENS, 0, ignore_eos=True) for row in rows])
        assert engine.represent([rows[0]]).shape == (1, N_LAYERS, HIDDEN)
    assert got == expected
    changed = [list(completion.token_ids) != tokens for completion, tokens in zip(bare, got, strict=True)]
    assert changed == [False, True, True, True], "an edit that changes no token proves nothing"


@pytest.mark.parametrize("kind", ALL)
def test_the_site_is_what_the_block_adds_to_its_residual_stream(kind: str) -> None:
    model = tiny_model(kind)
    factor = residual_factor(model.config)
    path = find_site(model, N_LAYERS, candidate_paths(model), factor)
    assert path == candidate_paths(model)[0]
    assert path == NORMED.get(kind, path)
    assert factor == (0.3 if kind == "granite" else 1.0)
    with pytest.raises(UnknownArchitecture, match="residual stream"):
        find_site(model, N_LAYERS, [path], factor * 1.5)


@pytest.mark.parametrize("kind", NORMED)
def test_an_mlp_whose_output_is_normed_before_it_is_added_is_refused(kind: str) -> None:
    path = NORMED[kind].rsplit(".", 1)[0] + ".mlp"
    with pytest.raises(UnknownArchitecture, match=r"layers\.0\.mlp is not what its block adds.*ALIGNEZ_MLP_PATH"):
        tiny_engine(kind, path_of_mlp=path)


def test_the_factor_is_part_of_the_statement() -> None:
    model = tiny_model("granite")
    with pytest.raises(UnknownArchitecture, match="by 1 times it"):
        find_site(model, N_LAYERS, ["model.layers.{layer}.mlp"], 1.0)


@pytest.mark.parametrize("kind", ALL)
def test_a_block_s_output_is_the_residual_stream_after_it(kind: str) -> None:
    model = tiny_model(kind)
    blocks = find_blocks(model, N_LAYERS, candidate_paths(model)[0])
    seen = {}
    for layer, block in enumerate(blocks):
        block.register_forward_hook(lambda m, a, out, layer=layer: seen.update({layer: output_tensor(out)}))
    with torch.no_grad():
        out = model(torch.tensor([[5, 6, 7, 8]]), output_hidden_states=True)
    # Hugging Face's last hidden state is after the final norm.
    for layer in range(N_LAYERS - 1):
        assert torch.equal(seen[layer].view(1, 4, HIDDEN), out.hidden_states[layer + 1].view(1, 4, HIDDEN))


def test_an_mlp_that_returns_a_tuple_is_edited_in_its_first_entry() -> None:
    class WithRouter(nn.Module):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.inner = mlp

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.inner(x), torch.zeros(1)

    class Block(nn.Module):
        self_attn: Any
        input_layernorm: Any
        post_attention_layernorm: Any

        def __init__(self, block: Any) -> None:
            super().__init__()
            self.__dict__.update(block.__dict__)
            self.mlp: Any = WithRouter(block.mlp)

        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
            hidden_states = hidden_states + attended
            return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))[0]

    def wrapped() -> PreTrainedModel:
        model = tiny_model("llama")
        model.model.layers = nn.ModuleList(Block(block) for block in model.model.layers)
        return model

    row = prompts(1)[0]
    path = "model.layers.{layer}.mlp"
    with TransformersEngine.from_model(wrapped(), byte_tokenizer(), "x", name="x", path_of_mlp=path) as engine:
        requests = [GenerationRequest(row, NEW_TOKENS, 0, ignore_eos=True, edit=edit) for edit in EDITS]
        got = [list(completion.token_ids) for completion in engine.generate(requests)]
    assert got == [greedy_of_hugging_face(tiny_model("llama"), row, edit) for edit in EDITS]
    assert got == [greedy_of_hugging_face(wrapped(), row, edit) for edit in EDITS]


def test_the_text_part_of_a_multimodal_model_loads_from_its_directory(tmp_path: Path) -> None:
    tiny_model("gemma3").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    request = GenerationRequest(prompts(1)[0], NEW_TOKENS, 0, ignore_eos=True, edit=EDITS[1])
    with TransformersEngine.load(tmp_path) as loaded, tiny_engine("gemma3") as own:
        assert loaded.generate([request]) == own.generate([request])
        assert (loaded.info.n_layers, loaded.info.hidden_size) == (N_LAYERS, HIDDEN)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({"n_head": 4}, r"BloomForCausalLM computes its attention itself"),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 3}, r"MptForCausalLM computes its attention itself"),
    "mamba": ({}, r"'mamba' has linear_attention layers.*no setting changes that"),
    "falcon": ({"alibi": True, "new_decoder_architecture": False}, r"FalconForCausalLM computes its attention itself"),
    "doge": ({"num_key_value_heads": 2, "intermediate_size": 48}, r"DogeForCausalLM makes attention masks of its own"),
    "phimoe": (
        {"num_key_value_heads": 2, "intermediate_size": 48, "num_local_experts": 4, "sliding_window": 8},
        r"PhimoeForCausalLM has sliding attention but does not pass its window",
    ),
    "qwen3_next": (
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 2,
            "intermediate_size": 16,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
        r"'qwen3_next' has linear_attention layers",
    ),
    "llama4_text": (
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 16,
            "intermediate_size_mlp": 16,
            "num_local_experts": 2,
            "layer_types": ["chunked_attention", "chunked_attention", "full_attention"],
        },
        r"has chunked_attention layers",
    ),
}


def other_model(kind: str, settings: dict[str, Any]) -> PreTrainedModel:
    sizes = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    if kind == "mpt":
        sizes = {"vocab_size": 264}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes | settings))
    return model.eval()


def refusal(model: PreTrainedModel, **options: Any) -> str:
    with pytest.raises(UnknownArchitecture) as raised:
        TransformersEngine.from_model(model, byte_tokenizer(), "x", name="x", **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(kind: str) -> None:
    settings, said = REFUSED[kind]
    assert re.search(said, refusal(other_model(kind, settings)))


def test_a_path_given_for_a_model_without_slot_attention_does_not_help() -> None:
    settings, _ = REFUSED["mpt"]
    line = refusal(other_model("mpt", settings), path_of_mlp="transformer.blocks.{layer}.ffn")
    assert "slots; no setting" in line


def test_a_window_that_a_configuration_carries_without_use_refuses_nothing() -> None:
    settings = {"num_key_value_heads": 2, "intermediate_size": 48, "num_local_experts": 4, "sliding_window": None}
    model = other_model("phimoe", settings)
    model.config.sliding_window = None
    with TransformersEngine.from_model(model, byte_tokenizer(), "x", name="x") as engine:
        assert engine.info.n_layers == N_LAYERS
    carried = tiny_model("stablelm")
    carried.config.sliding_window = 8
    with TransformersEngine.from_model(carried, byte_tokenizer(), "x", name="x") as engine:
        assert engine.info.n_layers == N_LAYERS


def test_logits_that_differ_over_slots_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda *args: attend(*args) * 1.1)
    assert "does not give the same result" in refusal(tiny_model("stablelm"))


def test_a_model_that_contradicts_its_configuration_is_refused() -> None:
    model = tiny_model("stablelm")
    model.model.layers[1].mlp.down_proj = nn.Linear(48, 7)
    assert "layers.1.mlp" in refusal(model) or "does not run on a few tokens" in refusal(model)


def test_every_listed_path_is_of_a_tested_architecture() -> None:
    assert set(MLP_PATHS) == set(ARCHITECTURES)


def test_a_path_with_a_suffix_behind_the_index_names_the_block() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Sequential(nn.Linear(2, 2))])
    assert find_blocks(model, 1, "layers.{layer}.0") == list(model.layers)
    assert find_mlp_modules(model, 1, "layers.{layer}.0") == [model.get_submodule("layers.0.0")]
