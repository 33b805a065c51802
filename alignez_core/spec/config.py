"""Settings of a fit, stored with each profile version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from alignez_core.errors import InvalidInput, LayerOutOfRange, TooFewSamples
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
    number,
    one_of,
    whole,
)

#: Values of settings that are None.
DEFAULT_RANK = 3
DEFAULT_RIDGE = 1.0
DEFAULT_ALIGNEZ_LAYERS = 5
DEFAULT_PROMPT_MARGIN = 0.2
DEFAULT_CHARACTERISTICS_TOKENS = 50


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit. The method decides a setting that is None.

    Args:
        method: "auto" measures several forms of `distill` and the persona as a prompt, and takes the best. The other
            names are those of `alignez_core.methods`.
        contrast: λ of `distill`: distance of the target beyond the prompted model, along help − harm. None: chosen on
            the tune split.
        contrast_form: form in which help − harm enters the target: each row ("full"), the mean of all rows ("mean"), or
            rows clipped at their median norm ("clipped"). None: chosen together with `contrast`.
        rank: rows of `distill` per layer, without the row for the mean. None: 3.
        ridge: ridge penalty, in units of the mean diagonal of the normal matrix. None: 1.
        layers: number of layers, "all", or explicit 0-based indices. None: the method's default.
        layer_rule: rule by which `alignez` selects layers when `layers` is a number. None: "consistency".
        representation: position that `alignez` reads. None: "prompt".
        edit_rule: edit rule of `alignez`. None: "sequential".
        strength: dose of the edit, 0 to 8; 1 is the edit as fitted.
        steps: number of edited positions, counted from the last prompt token. "default": 1 for `transport`, unlimited
            for the other methods. None: unlimited.
        conditional: each request gets an edit made from its nearest fit queries. None: true for `alignez` (as in the
            paper), and for `distill` when queries have their own phrases.
        neighbors: K, 1 to the number of fit queries.
        query_encoder: "lm" or a sentence-transformers model.
        judge: "self", "nano", "openai", "model:PATH" or "reward:PATH".
        judge_fallback: continue with "self" when the judge is unreachable; False fails the job.
        prompt_margin: "auto" chooses the persona as a prompt if its net win over the best edit exceeds this margin.
        answers: number of fit queries that the model answers.
        tune_queries, held_out_queries: sizes of the splits for the choice and for the proof; 0 leaves a split out.
        answer_tokens: maximum new tokens of an answer.
        characteristics_tokens: maximum new tokens of a characteristics text. None: 50, as in the paper.
        own_queries: number of queries that the model invents in addition to the given ones.
        temperature: sampling temperature of the fit's texts and of the proof's answers.
        seed: seed of all sampling. Each row derives its seed from this one and its query's index, so results do not
            depend on batching.
        chunk_size: texts per stored chunk: the most that a restarted worker generates again.
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
        left_open = {name for name in METHOD_SETTINGS if getattr(self, name) is None}
        for name, allowed in (
            ("contrast_form", CONTRAST_FORMS),
            ("layer_rule", LAYER_RULES),
            ("representation", REPRESENTATIONS),
            ("edit_rule", EDIT_RULES),
        ):
            if name not in left_open:
                one_of(name, getattr(self, name), allowed)
        for name, methods in METHOD_SETTINGS.items():
            if name not in left_open and self.method not in methods:
                raise InvalidInput(
                    name,
                    f"{getattr(self, name)!r} does not go with method {self.method!r}; it is a setting of "
                    f"{', '.join(methods)}",
                )
        for name in ("contrast", "ridge", "prompt_margin", "strength", "temperature"):
            if name not in left_open:
                number(name, getattr(self, name))
        for name in (
            "rank", "characteristics_tokens", "neighbors", "answers", "tune_queries", "held_out_queries",
            "answer_tokens", "own_queries", "seed", "chunk_size",
        ):  # fmt: skip
            if name not in left_open:
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
        """`steps` with "default" resolved; None means unlimited."""
        if self.steps == "default":
            return 1 if self.method == "transport" else None
        return self.steps

    def check_model(self, n_layers: int) -> None:
        """Raises: LayerOutOfRange: a named layer, or the number of layers, exceeds the model's."""
        if isinstance(self.layers, tuple) and self.layers[-1] >= n_layers:
            raise LayerOutOfRange(self.layers[-1], n_layers)
        if isinstance(self.layers, int) and self.layers > n_layers:
            raise LayerOutOfRange(self.layers - 1, n_layers)

    def check_samples(self, n_queries: int) -> None:
        """Raises: TooFewSamples: `neighbors` exceeds the number of queries."""
        if self.neighbors > n_queries:
            raise TooFewSamples(self.neighbors, n_queries)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values; the inverse of `from_dict`."""
        result = asdict(self)
        result["layers"] = list(self.layers) if isinstance(self.layers, tuple) else self.layers
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FitConfig:
        """The settings of a `to_dict`. Raises: InvalidInput: an unknown or malformed setting."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise InvalidInput(unknown[0], "is not a fit setting")
        return cls(**values)


def check_judge(judge: object) -> None:
    """Raises: InvalidInput: an unknown judge, or "model:" or "reward:" without a path."""
    if isinstance(judge, str):
        kind, colon, rest = judge.partition(":")
        if f"{kind}{colon}" in JUDGES and bool(colon) == bool(rest):
            return
    raise InvalidInput("judge", f"{judge!r} is not one of self, nano, openai, model:PATH, reward:PATH")
