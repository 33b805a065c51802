"""Settings that `VLLMEngine` passes to the plugin through vLLM's `additional_config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

KEY = "alignez"


@dataclass(frozen=True)
class EditSettings:
    """Size of the device tables.

    Args:
        slots: S, plans that requests can use at the same time.
        rank: R of the tables; a plan of a higher rank is refused. 1 is enough for `transport`, 2 for `alignez`.
    """

    slots: int = 64
    rank: int = 4

    def to_additional_config(self) -> dict[str, Any]:
        return {KEY: asdict(self)}

    @classmethod
    def of(cls, additional_config: Mapping[str, Any] | None) -> EditSettings | None:
        """None: this model is not to be edited."""
        found = (additional_config or {}).get(KEY)
        return None if found is None else cls(**found)
