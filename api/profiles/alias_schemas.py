"""Bodies and replies about which version is in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from api.http.fields import Body, VersionNumber, field_error
from profiles.service.aliases import MAX_TARGETS, MAX_WEIGHT, MIN_WEIGHT

Weight = Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)]
NumberText = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]


def _few(weights: object) -> object:
    """Counted before each is checked: a body of wrong ones would make an error of each."""
    if isinstance(weights, dict) and len(weights) > MAX_TARGETS:
        raise ValueError(f"at most {MAX_TARGETS} versions, got {len(weights)}")
    return weights


Weights = Annotated[
    dict[NumberText, Weight],
    BeforeValidator(_few),
    Field(min_length=1, max_length=MAX_TARGETS, examples=[{"3": 0.9, "4": 0.1}]),
]


class AliasTarget(Body):
    """The target of an alias: a version, or several with weights."""

    version: VersionNumber | None = None
    weights: Weights | None = None
    force: bool = Field(False, description="let the default point to a weak version")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.version is None) == (self.weights is None):
            raise field_error("version", "give version or weights, one of them")
        return self


class Promotion(Body):
    """The version that becomes the default."""

    version: VersionNumber
    force: bool = Field(False, description="also when it is weak")


class AliasRead(BaseModel):
    """An alias and its targets: version number → share of the traffic, in sum 1."""

    alias: str
    targets: dict[str, float]

    @classmethod
    def of(cls, alias: str, targets: Mapping[int, float]) -> Self:
        """The shares as a reply."""
        return cls(alias=alias, targets={str(number): share for number, share in targets.items()})
