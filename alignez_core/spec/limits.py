"""Names, ranges and checks of fit settings. The core applies them, and the API builds its request bodies from them."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from alignez_core.errors import InvalidInput

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
#: Judge names of `FitConfig.judge`; a directory or hub id follows "model:" and "reward:".
JUDGES: tuple[str, ...] = ("self", "nano", "openai", "model:", "reward:")

MAX_QUERIES = 2000
#: Largest R, the number of rows of an edit at one layer; engines reserve memory for it.
MAX_RANK = 8
MAX_STRENGTH = 8.0


class Range(NamedTuple):
    """Inclusive bounds of a number."""

    low: float
    high: float


#: Ranges of the numeric settings by name.
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

#: Settings that only some methods use, with these methods. `FitConfig` refuses them with any other method.
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


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises: InvalidInput: the value is not one of the allowed names."""
    if value not in allowed:
        raise InvalidInput(name, f"{value!r} is not one of {', '.join(allowed)}")


def whole(name: str, value: object, limit: str | None = None) -> None:
    """Raises: InvalidInput: not a whole number within the range `LIMITS[limit or name]`."""
    low, high = LIMITS[limit or name]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidInput(name, f"{value!r} is not a whole number from {low:.0f} to {high:.0f}")


def number(name: str, value: object) -> None:
    """Raises: InvalidInput: not a number within the range `LIMITS[name]`; NaN never is."""
    low, high = LIMITS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidInput(name, f"{value!r} is not a number from {low:g} to {high:g}")
