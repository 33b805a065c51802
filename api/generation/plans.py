"""A profile version in the core's types, as requests use it, and the cache that holds versions and their edits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from cachetools import LRUCache

from alignez_core.prompts import Prefix
from alignez_core.spec.config import FitConfig
from profiles.service import ActiveProfile, NearestGroups
from profiles.service.lookup import Neighbourhood

if TYPE_CHECKING:  # torch stays out of processes without a model
    from torch import Tensor

    from alignez_core.editing import EditPlan

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class BoundedCache(Generic[_K, _V]):
    """A thread-safe LRU cache, bounded both by the number of its values and by their bytes.

    Args:
        size: maximum number of values.
        max_bytes: maximum of all values together; a larger value is cached alone.
        bytes_of: returns the size of a value.
    """

    def __init__(self, size: int, max_bytes: int, bytes_of: Callable[[_V], int]) -> None:
        self._size = size
        self._values: LRUCache[_K, _V] = LRUCache(max_bytes, lambda value: min(bytes_of(value), max_bytes))
        self._lock = threading.Lock()

    def get(self, key: _K) -> _V | None:
        """The cached value, which becomes the most recently used one, or None."""
        with self._lock:
            return self._values.get(key)

    def drop(self, of: Callable[[_K], bool]) -> None:
        """Forgets the values of some keys."""
        with self._lock:
            for key in [key for key in self._values if of(key)]:
                del self._values[key]

    def put(self, key: _K, value: _V) -> None:
        """Caches a value, and evicts the least recently used ones beyond the bounds."""
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem()


@dataclass(frozen=True, eq=False)
class Loaded:
    """A version in the core's types.

    Args:
        edits: one for each group of fit queries, at strength 1; empty if the version has a prefix only.
        lookup: the kind of lookup that a request makes among the fit queries.
    """

    config: FitConfig
    method: Any  #: a `MethodName`; the database's text
    layers: tuple[int, ...]
    edits: tuple[EditPlan, ...]
    lookup: Literal["none", "groups", "neighbors"]
    prefix: Prefix | None

    def plan(self, group: int, strength: float) -> EditPlan:
        """The edit of a group at a strength."""
        from alignez_core.methods.base import plan_at

        return plan_at(self.method, self.config, self.edits[group], strength)

    def group_of(self, near: NearestGroups) -> int:
        """The group that the nearest fit queries vote for."""
        from alignez_core.methods.base import vote

        return vote(near.groups, [float(similarity) for similarity in near.similarities])

    def own_plan(self, near: Neighbourhood, strength: float) -> EditPlan:
        """The edit computed from the nearest fit queries. Raises: DegenerateEmbeddings: they define no direction."""
        from alignez_core.methods.alignez import neighbor_plan

        return neighbor_plan(self.config, self.layers, _required(near.help), _required(near.harm), strength)


def load_plans(active: ActiveProfile) -> Loaded:
    """Converts a stored version to the core's types."""
    from alignez_core.editing import EditPlan

    edits = tuple(
        EditPlan.from_arrays(active.layers, e.u, e.v, e.c, active.steps, active.positions) for e in active.edits
    )
    prefix = None if active.prefix is None else Prefix.from_dict(active.prefix)
    config = FitConfig.from_dict(active.config)
    return Loaded(config, active.method, active.layers, edits, active.lookup, prefix)


def loaded_bytes(loaded: Loaded) -> int:
    """Size of a version's edits in bytes."""
    return sum(plan.nbytes for plan in loaded.edits)


def edit_ratio(plan: EditPlan, x: Tensor) -> float | None:
    """‖y − x‖ / ‖x‖, mean over the edited layers.

    Args:
        x: (L_all, D) MLP outputs of every layer at one position.
    Returns: None when the output of an edited layer is zero, because the ratio is undefined then.
    """
    import torch

    rows = x[list(plan.layers)].float()
    change = torch.stack([plan.apply(row, layer) for layer, row in zip(plan.layers, rows, strict=True)]) - rows
    size = rows.norm(dim=1)
    if bool((size == 0).any()):
        return None
    return float((change.norm(dim=1) / size).mean())


def _tensor(array: Any) -> Tensor:
    import torch

    # torch must not wrap a read-only array without a copy.
    return torch.from_numpy(array) if array.flags.writeable else torch.tensor(array)


def _required(array: Any) -> Tensor:
    from profiles.errors import NotFound

    if array is None:
        raise NotFound("representations", "of this version")
    return _tensor(array)
