"""Checks of single settings; each raises `InvalidInput` that names the field, the value and the limit."""

from __future__ import annotations

from alignez_core.errors import InvalidInput
from alignez_core.spec.limits import LIMITS


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises: InvalidInput: the value is not one of the allowed names."""
    if value not in allowed:
        raise InvalidInput(name, f"{value!r} is not one of {', '.join(allowed)}")


def whole(name: str, value: object, limit: str | None = None) -> None:
    """Raises: InvalidInput: not a whole number in the range that `LIMITS` has for the name (or for `limit`)."""
    low, high = LIMITS[limit or name]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidInput(name, f"{value!r} is not a whole number from {low:.0f} to {high:.0f}")


def number(name: str, value: object) -> None:
    """Raises: InvalidInput: not a number in the range that `LIMITS` has for the name; NaN is in no range."""
    low, high = LIMITS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidInput(name, f"{value!r} is not a number from {low:g} to {high:g}")
