"""Names and ranges of every setting, once; the core checks them and the API's bodies are made from them."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

MethodName = Literal["auto", "distill", "alignez", "caa", "transport", "prompt", "urial"]
ContrastForm = Literal["full", "mean", "clipped"]
Representation = Literal["prompt", "response_last", "response_mean"]
EditRule = Literal["sequential", "simultaneous", "orthogonal"]
LayerRule = Literal["consistency", "separation"]
Positions = Literal["answer", "all"]

METHODS: tuple[str, ...] = get_args(MethodName)
CONTRAST_FORMS: tuple[str, ...] = get_args(ContrastForm)
REPRESENTATIONS: tuple[str, ...] = get_args(Representation)
EDIT_RULES: tuple[str, ...] = get_args(EditRule)
LAYER_RULES: tuple[str, ...] = get_args(LayerRule)
#: Judges that a fit can name; "model:" and "reward:" are followed by a directory or hub id.
JUDGES: tuple[str, ...] = ("self", "nano", "openai", "model:", "reward:")

MAX_QUERIES = 2000
#: R, the rows of an edit at one layer that engines make room for.
MAX_RANK = 8
MAX_STRENGTH = 8.0


class Range(NamedTuple):
    """Inclusive bounds of a number."""

    low: float
    high: float


#: Numeric settings of a fit by name.
LIMITS: dict[str, Range] = {
    "contrast": Range(0.0, 8.0),
    "rank": Range(1, MAX_RANK - 1),  # one more row holds the mean
    "ridge": Range(1e-6, 1e6),
    "layers": Range(1, 10_000),
    "layer_index": Range(0, 10_000),
    "strength": Range(0.0, MAX_STRENGTH),
    "steps": Range(1, 100_000),
    "neighbors": Range(1, MAX_QUERIES),
    "answers": Range(1, 256),
    "tune_queries": Range(0, 64),
    "held_out_queries": Range(0, 512),
    "answer_tokens": Range(1, 1024),
    "characteristics_tokens": Range(1, 1024),
    "own_queries": Range(0, 256),
    "chunk_size": Range(1, 512),
    "seed": Range(0, 2**53),
    "temperature": Range(0.0, 2.0),
    "prompt_margin": Range(0.0, 2.0),
}

#: Settings that mean something to some methods only; with another method they are refused by name.
METHOD_SETTINGS: dict[str, tuple[str, ...]] = {
    "contrast": ("auto", "distill"),
    "contrast_form": ("auto", "distill"),
    "ridge": ("auto", "distill"),
    "rank": ("auto", "distill"),
    "prompt_margin": ("auto",),
    "representation": ("alignez",),
    "edit_rule": ("alignez",),
    "layer_rule": ("alignez",),
    "characteristics_tokens": ("alignez",),
    "layers": ("auto", "distill", "alignez", "transport", "caa"),
}
