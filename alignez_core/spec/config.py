"""Settings of a fit, stored with each profile version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from alignez_core.errors import InvalidInput, LayerOutOfRange, TooFewSamples
from alignez_core.spec.checks import number, one_of, whole
from alignez_core.spec.limits import (
    CONTRAST_FORMS,
    EDIT_RULES,
    JUDGES,
    LAYER_RULES,
    METHOD_SETTINGS,
    METHODS,
    REPRESENTATIONS,
    ContrastForm,
    EditRule,
    LayerRule,
    MethodName,
    Representation,
)

#: Used where a setting is left open.
DEFAULT_RANK = 3
DEFAULT_RIDGE = 1.0
DEFAULT_ALIGNEZ_LAYERS = 5
DEFAULT_PROMPT_MARGIN = 0.2
DEFAULT_CHARACTERISTICS_TOKENS = 50


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit. None leaves a setting to the method.

    Args:
        method: "auto" measures several forms of `distill` beside the persona as a prompt and takes the best; the
            others are named in `alignez_core.methods`.
        contrast: λ of `distill`, how far beyond the persona's prompt the target lies. None: chosen on the tune split.
        contrast_form: how help − harm enters the target: row by row ("full"), as its mean, or with rows clipped at
            their median norm. None: chosen with `contrast`.
        rank: rows of `distill` at each layer beside the row for the mean; 3.
        ridge: penalty of the regression, in units of the mean diagonal of its normal matrix; 1.
        layers: how many (an int), "all", or explicit 0-based indices. None: the method's own.
        layer_rule: how `alignez` chooses when `layers` is a number; "consistency".
        representation: where `alignez` reads; "prompt".
        edit_rule: of `alignez`; "sequential".
        strength: dose, 0 to 8; 1 is the method itself.
        steps: edited positions from the last prompt token on; "default": 1 for `transport`, no end for the others;
            None: no end.
        conditional: an edit per request from the nearest fit queries. None: `alignez` yes (the paper), `distill` where
            queries bring phrases of their own, else no.
        neighbors: K, 1 to the number of fit queries.
        query_encoder: "lm" or a sentence-transformers model.
        judge: who compares answers: "self", "nano", "openai", "model:PATH" or "reward:PATH".
        judge_fallback: go on with "self" when the judge cannot be reached; False ends the job.
        prompt_margin: how much more net win the persona as a prompt needs over the best edit for "auto" to choose it.
        answers: fit queries that the model answers itself.
        tune_queries, held_out_queries: for the choice and for the proof; 0 leaves either out.
        answer_tokens: new tokens of an answer at most.
        characteristics_tokens: new tokens of a characteristics text at most (the paper's 50).
        own_queries: queries that the model invents beside the given ones.
        temperature: of the self-generated data and of the proof's answers.
        seed: of all sampling. Row seeds derive from it and the query's index, so batching does not matter.
        chunk_size: texts per stored chunk, the most that a killed worker generates twice.
    """

    method: MethodName = "auto"
    contrast: float | None = None
    contrast_form: ContrastForm | None = None
    rank: int | None = None
    ridge: float | None = None
    layers: int | Literal["all"] | tuple[int, ...] | None = None
    layer_rule: LayerRule | None = None
    representation: Representation | None = None
    edit_rule: EditRule | None = None
    strength: float = 1.0
    steps: int | Literal["default"] | None = "default"
    conditional: bool | None = None
    neighbors: int = 10
    query_encoder: str = "lm"
    judge: str = "self"
    judge_fallback: bool = False
    prompt_margin: float | None = None
    answers: int = 24
    tune_queries: int = 8
    held_out_queries: int = 32
    answer_tokens: int = 48
    characteristics_tokens: int | None = None
    own_queries: int = 0
    temperature: float = 0.8
    seed: int = 0
    chunk_size: int = 128

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        for name, allowed in (
            ("contrast_form", CONTRAST_FORMS),
            ("layer_rule", LAYER_RULES),
            ("representation", REPRESENTATIONS),
            ("edit_rule", EDIT_RULES),
        ):
            if getattr(self, name) is not None:
                one_of(name, getattr(self, name), allowed)
        for name, methods in METHOD_SETTINGS.items():
            if getattr(self, name) is not None and self.method not in methods:
                raise InvalidInput(
                    name,
                    f"{getattr(self, name)!r} does not go with method {self.method!r}; it is a setting of "
                    f"{', '.join(methods)}",
                )
        for name in ("contrast", "ridge", "prompt_margin"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name))
        number("strength", self.strength)
        number("temperature", self.temperature)
        for name in ("rank", "characteristics_tokens"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name))
        for name in (
            "neighbors", "answers", "tune_queries", "held_out_queries", "answer_tokens", "own_queries", "seed",
            "chunk_size",
        ):  # fmt: skip
            whole(name, getattr(self, name))
        if self.steps is not None and self.steps != "default":
            whole("steps", self.steps)
        self._check_layers()
        if self.conditional is not None and not isinstance(self.conditional, bool):
            raise InvalidInput("conditional", "must be true, false or left out")
        if not isinstance(self.judge_fallback, bool):
            raise InvalidInput("judge_fallback", "must be true or false")
        if not isinstance(self.query_encoder, str) or not self.query_encoder:
            raise InvalidInput("query_encoder", "must be 'lm' or the name of a sentence-transformers model")
        check_judge(self.judge)

    def _check_layers(self) -> None:
        if isinstance(self.layers, list | tuple):
            layers = tuple(self.layers)
            for layer in layers:
                whole("layers", layer, "layer_index")
            if not layers or len(set(layers)) != len(layers):
                raise InvalidInput("layers", "the list must name at least one layer, each once")
            object.__setattr__(self, "layers", tuple(sorted(layers)))
        elif self.layers is not None and self.layers != "all":
            whole("layers", self.layers)

    @property
    def effective_steps(self) -> int | None:
        """`steps` with "default" resolved: 1 for transport, None (no end) for the others."""
        if self.steps == "default":
            return 1 if self.method == "transport" else None
        return self.steps

    def check_model(self, n_layers: int) -> None:
        """Raises: LayerOutOfRange: a named layer, or more layers than the model has."""
        if isinstance(self.layers, tuple) and self.layers[-1] >= n_layers:
            raise LayerOutOfRange(self.layers[-1], n_layers)
        if isinstance(self.layers, int) and self.layers > n_layers:
            raise LayerOutOfRange(self.layers - 1, n_layers)

    def check_samples(self, n_queries: int) -> None:
        """Raises: TooFewSamples: K > N, naming both."""
        if self.neighbors > n_queries:
            raise TooFewSamples(self.neighbors, n_queries)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, complete; `from_dict` restores it."""
        result = asdict(self)
        result["layers"] = list(self.layers) if isinstance(self.layers, tuple) else self.layers
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FitConfig:
        """Raises: InvalidInput: an unknown or malformed setting, by name."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise InvalidInput(unknown[0], "is not a fit setting")
        settings = dict(values)
        if isinstance(settings.get("layers"), list):
            settings["layers"] = tuple(settings["layers"])
        return cls(**settings)


def check_judge(judge: object) -> None:
    """Raises: InvalidInput: not a judge's name, or "model:" or "reward:" without a model."""
    if isinstance(judge, str):
        kind, colon, rest = judge.partition(":")
        if f"{kind}{colon}" in JUDGES and bool(colon) == bool(rest):
            return
    raise InvalidInput("judge", f"{judge!r} is not one of self, nano, openai, model:PATH, reward:PATH")
