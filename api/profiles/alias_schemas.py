"""Bodies and replies about which version is in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from api.http.fields import Body, VersionNumber

Weight = Annotated[float, Field(gt=0, le=1_000_000)]
NumberText = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class AliasTarget(Body):
    """One version, or several by weight."""

    version: VersionNumber | None = None
    weights: (
        Annotated[dict[NumberText, Weight], Field(min_length=1, max_length=10, examples=[{"3": 0.9, "4": 0.1}])] | None
    ) = None

    force: bool = Field(False, description="let the default point to a weak version")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.version is None) == (self.weights is None):
            raise ValueError("give version or weights, one of them")
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
