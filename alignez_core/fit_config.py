"""What a fit is asked to do: its settings, queries and given pairs. Stored with each profile version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from alignez_core.editing import EDIT_RULES, MAX_STRENGTH, EditRule
from alignez_core.errors import InvalidInput, LayerOutOfRange, TooFewSamples
from alignez_core.layer_selection import LAYER_RULES, LayerRule
from alignez_core.prompts import Persona

Method = Literal["transport", "alignez"]
Representation = Literal["prompt", "response_last", "response_mean"]
METHODS: tuple[str, ...] = get_args(Method)
REPRESENTATIONS: tuple[str, ...] = get_args(Representation)
DEFAULT_ALIGNEZ_LAYERS = 5
MAX_QUERIES = 2000


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit. Defaults are the paper's where the paper has one.

    Args:
        method: "transport" (ours) or "alignez" (the paper).
        conditional: directions per request from the nearest fit queries; False: one set for all.
        neighbors: K, 1 to N.
        layers: how many to keep (an int), "all", or explicit 0-based indices. None: all for transport, 5 for alignez.
        layer_rule: how an int chooses.
        representation: where Phi is read: the prompt's last token, the response's last token, or its mean.
        edit_rule: of `alignez`: "sequential", "simultaneous", "orthogonal".
        strength: dose, 0 to 8; 1 is the method itself.
        steps: edited positions from the last prompt token on; "default": 1 for transport, no end for alignez;
            None: no end.
        responses: for how many queries response pairs are made when the fit does not need them; "all" or a number.
            Given pairs keep their answers whatever it says.
        query_encoder: "lm" or a sentence-transformers model.
        seed: of all sampling. Row seeds derive from it and the query's index, so batching does not matter.
        temperature: of the self-generated data.
        characteristics_tokens: new tokens at most (the paper's 50).
        response_tokens: new tokens at most. None: the paper's 200, or less on a short context (48 on 512 tokens).
        own_queries: how many queries the model invents beside the given ones.
        chunk_size: queries per stored chunk, the most that a killed worker generates twice.
    """

    method: Method = "transport"
    conditional: bool = True
    neighbors: int = 10
    layers: int | Literal["all"] | tuple[int, ...] | None = None
    layer_rule: LayerRule = "consistency"
    representation: Representation = "prompt"
    edit_rule: EditRule = "sequential"
    strength: float = 1.0
    steps: int | Literal["default"] | None = "default"
    responses: int | Literal["all"] = 32
    query_encoder: str = "lm"
    seed: int = 0
    temperature: float = 0.8
    characteristics_tokens: int = 50
    response_tokens: int | None = None
    own_queries: int = 0
    chunk_size: int = 32

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("layer_rule", self.layer_rule, LAYER_RULES)
        _one_of("representation", self.representation, REPRESENTATIONS)
        _one_of("edit_rule", self.edit_rule, EDIT_RULES)
        if not isinstance(self.conditional, bool):
            raise InvalidInput("conditional", "must be true or false")
        _integer("neighbors", self.neighbors, 1, MAX_QUERIES)
        if isinstance(self.layers, list | tuple):
            layers = tuple(self.layers)
            for layer in layers:
                _integer("layers", layer, 0, 10_000)
            if not layers or len(set(layers)) != len(layers):
                raise InvalidInput("layers", "the list must name at least one layer, each once")
            object.__setattr__(self, "layers", tuple(sorted(layers)))
        elif self.layers is not None and self.layers != "all":
            _integer("layers", self.layers, 1, 10_000)
        _number("strength", self.strength, 0.0, MAX_STRENGTH)
        _number("temperature", self.temperature, 0.0, 2.0)
        if self.steps is not None and self.steps != "default":
            _integer("steps", self.steps, 1, 100_000)
        if self.responses != "all":
            _integer("responses", self.responses, 0, MAX_QUERIES)
        if not isinstance(self.query_encoder, str) or not self.query_encoder:
            raise InvalidInput("query_encoder", "must be 'lm' or the name of a sentence-transformers model")
        _integer("seed", self.seed, 0, 2**53)
        _integer("characteristics_tokens", self.characteristics_tokens, 1, 1024)
        if self.response_tokens is not None:
            _integer("response_tokens", self.response_tokens, 1, 4096)
        _integer("own_queries", self.own_queries, 0, 256)
        _integer("chunk_size", self.chunk_size, 1, 512)
        if self.method == "transport" and self.representation != "prompt":
            raise InvalidInput(
                "representation",
                f"{self.representation!r} does not go with method 'transport', which sets the state at the prompt's "
                "last token and so has to read it there; use 'prompt', or method 'alignez'",
            )

    @property
    def effective_steps(self) -> int | None:
        """`steps` with "default" resolved: 1 for transport, None (no end) for alignez."""
        if self.steps == "default":
            return 1 if self.method == "transport" else None
        return self.steps

    @property
    def needs_responses(self) -> bool:
        """Whether the representation reads responses, so that every query needs a pair of them."""
        return self.representation != "prompt"

    def response_budget(self, context_length: int) -> int:
        """New tokens of one response on a model with this context: `response_tokens`, or 3/32 of it, at most 200."""
        return self.response_tokens or max(1, min(200, context_length * 3 // 32))

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


@dataclass(frozen=True)
class FitQuery:
    """A query to fit on; its own phrases, when given, replace the persona's (a personality that depends on context)."""

    text: str
    preferred: str | None = None
    dispreferred: str | None = None

    def persona(self, default: Persona) -> Persona:
        """The persona that answers this query."""
        if self.preferred is None and self.dispreferred is None:
            return default
        return Persona(
            self.preferred or default.preferred,
            self.dispreferred or default.dispreferred,
            default.description if self.preferred is None else None,
        )


@dataclass(frozen=True)
class GivenPair:
    """A ground-truth pair: both answers to one query, so that nothing has to be generated for it."""

    query: str
    preferred: str
    dispreferred: str


@dataclass(frozen=True)
class FitSpec:
    """Everything a fit starts from. Samples are numbered: queries first, then pairs, then the model's own queries."""

    persona: Persona = field(default_factory=Persona)
    queries: tuple[FitQuery, ...] = ()
    pairs: tuple[GivenPair, ...] = ()
    config: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", tuple(q if isinstance(q, FitQuery) else FitQuery(q) for q in self.queries))
        object.__setattr__(self, "pairs", tuple(self.pairs))
        total = len(self.queries) + len(self.pairs)
        if not 1 <= total <= MAX_QUERIES:
            raise InvalidInput("queries", f"{total} given; 1 to {MAX_QUERIES} are possible")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInput(name, f"{value!r} is not one of {', '.join(allowed)}")


def _integer(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidInput(name, f"{value!r} is not a whole number from {low} to {high}")


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        # NaN fails the comparison, so it ends here too.
        raise InvalidInput(name, f"{value!r} is not a number from {low:g} to {high:g}")
