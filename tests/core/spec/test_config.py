"""Settings: complete as JSON, and refused by name, value and limit."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_core.errors import InvalidInput, LayerOutOfRange, TooFewSamples
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import LIMITS, METHOD_SETTINGS, METHODS

CONFIGS = [
    FitConfig(),
    FitConfig(method="distill", contrast=1.5, contrast_form="clipped", rank=7, ridge=0.1, layers="all", steps=16),
    FitConfig(method="alignez", layers=(4, 2), representation="response_mean", edit_rule="orthogonal", steps=None,
              layer_rule="separation", characteristics_tokens=20, conditional=False),
    FitConfig(method="caa", layers=3, judge="openai", judge_fallback=True, own_queries=4),
    FitConfig(method="transport", strength=0.0, judge="reward:some/model"),
    FitConfig(prompt_margin=0.5, judge="model:/a/directory"),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.method)
def test_a_config_survives_json(config: FitConfig) -> None:
    stored = json.loads(json.dumps(config.to_dict()))
    assert FitConfig.from_dict(stored) == config
    assert set(stored) == {field.name for field in fields(FitConfig)}


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(sorted(set(LIMITS) - {"layer_index"})), above=st.booleans())
def test_a_number_out_of_its_range_is_refused_by_name_value_and_limit(name: str, above: bool) -> None:
    low, high = LIMITS[name]
    value = high + 1 if above else low - 1
    whole = all(float(bound).is_integer() for bound in (low, high)) and name not in ("strength", "temperature")
    value = int(value) if whole and name not in ("contrast", "prompt_margin") else value
    method = METHOD_SETTINGS.get(name, ("auto",))[0]
    with pytest.raises(InvalidInput) as caught:
        FitConfig.from_dict({name: value, "method": method})
    text = str(caught.value)
    assert text.startswith(f"{name}: {value!r}")
    assert f"{low:g}" in text or f"{low:.0f}" in text
    assert f"{high:g}" in text or f"{high:.0f}" in text


@pytest.mark.parametrize(("name", "methods"), METHOD_SETTINGS.items())
def test_a_setting_of_other_methods_is_refused_with_theirs_named(name: str, methods: tuple[str, ...]) -> None:
    words = {
        "contrast_form": "mean",
        "representation": "prompt",
        "edit_rule": "sequential",
        "layer_rule": "consistency",
    }
    value = words[name] if name in words else LIMITS[name].low
    for method in METHODS:
        if method in methods:
            FitConfig(method=method, **{name: value})  # type: ignore[arg-type]
            continue
        with pytest.raises(InvalidInput, match=f"{name}: .* does not go with method '{method}'") as caught:
            FitConfig(method=method, **{name: value})  # type: ignore[arg-type]
        assert all(other in str(caught.value) for other in methods)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("method", "magic", "'magic' is not one of auto, distill"),
        ("strength", float("nan"), "nan"),
        ("strength", True, "True"),
        ("seed", 1.5, "1.5"),
        ("layers", [], "at least one"),
        ("layers", [1, 1], "once"),
        ("layers", [-1], "-1"),
        ("layers", "most", "most"),
        ("steps", 0, "0"),
        ("conditional", 1, "true, false"),
        ("judge_fallback", None, "true or false"),
        ("query_encoder", "", "sentence-transformers"),
        ("judge", "model:", "model:PATH"),
        ("judge", "self:x", "self"),
        ("judge", 3, "3"),
        ("speed", 3, "is not a fit setting"),
    ],
)
def test_malformed_settings_say_what_is_wrong(field: str, value: object, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        FitConfig.from_dict({field: value})
    assert str(caught.value).startswith(f"{field}: ")
    assert says in str(caught.value)


def test_layers_are_ascending_and_must_be_the_model_s() -> None:
    config = FitConfig(layers=(4, 2))
    assert config.layers == (2, 4)
    config.check_model(5)
    with pytest.raises(LayerOutOfRange, match="layer 4"):
        config.check_model(4)
    with pytest.raises(LayerOutOfRange, match="3 layers"):
        FitConfig(layers=4).check_model(3)
    FitConfig(layers="all").check_model(1)


def test_more_neighbours_than_queries_names_both() -> None:
    with pytest.raises(TooFewSamples, match=r"neighbors=10 .* 9 "):
        FitConfig().check_samples(9)
    FitConfig().check_samples(10)


def test_steps_by_default_are_one_for_transport_and_endless_for_the_others() -> None:
    assert FitConfig(method="transport").effective_steps == 1
    assert {FitConfig(method=m).effective_steps for m in METHODS if m != "transport"} == {None}  # type: ignore[arg-type]
    assert FitConfig(method="transport", steps=None).effective_steps is None
    assert FitConfig(steps=16).effective_steps == 16
