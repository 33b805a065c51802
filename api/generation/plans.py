"""A version as serving keeps it: its edits and prefix in the core's types, and their doses."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from alignez_core.prompts import Prefix
from alignez_core.spec.config import FitConfig
from profiles.service import ActiveProfile, NearestGroups
from profiles.service.lookup import Neighbourhood

if TYPE_CHECKING:  # torch stays out of processes without a model
    from torch import Tensor

    from alignez_core.editing import EditPlan

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """The values used last, at most so many and so many bytes of them. Safe from any thread.

    Args:
        size: values at most. max_bytes: of all together; one that is larger by itself is kept alone.
        bytes_of: a value's size.
    """

    def __init__(self, size: int, max_bytes: int, bytes_of: Callable[[_V], int]) -> None:
        self._size = size
        self._max_bytes = max_bytes
        self._bytes_of = bytes_of
        self._held = 0
        self._values: OrderedDict[_K, _V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _K) -> _V | None:
        """The value, which then is the one used last."""
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
            return found

    def put(self, key: _K, value: _V) -> None:
        """Keeps a value, at the cost of those that were not used for longest."""
        with self._lock:
            if key in self._values:
                self._held -= self._bytes_of(self._values.pop(key))
            self._values[key] = value
            self._held += self._bytes_of(value)
            while len(self._values) > 1 and (len(self._values) > self._size or self._held > self._max_bytes):
                _, dropped = self._values.popitem(last=False)
                self._held -= self._bytes_of(dropped)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A version as requests need it.

    Args:
        edits: of each group of fit queries, at strength 1; none for a prefix alone.
        lookup: what a request looks up among the fit queries.
    """

    config: FitConfig
    method: Any  #: a `MethodName`; the database's text
    layers: tuple[int, ...]
    edits: tuple[EditPlan, ...]
    lookup: Literal["none", "groups", "neighbors"]
    prefix: Prefix | None

    def plan(self, group: int, strength: float) -> EditPlan:
        """A group's edit at a dose."""
        from alignez_core.methods.base import plan_at

        return plan_at(self.method, self.config, self.edits[group], strength)

    def group_of(self, near: NearestGroups) -> int:
        """The group that the nearest fit queries vote for."""
        from alignez_core.methods.base import vote

        return vote(near.groups, [float(similarity) for similarity in near.similarities])

    def own_plan(self, near: Neighbourhood, strength: float) -> EditPlan:
        """The edit that the nearest fit queries themselves define. Raises: DegenerateEmbeddings: they define none."""
        from alignez_core.methods.alignez import neighbor_plan

        return neighbor_plan(self.config, self.layers, _required(near.help), _required(near.harm), strength)


def load_plans(active: ActiveProfile) -> Loaded:
    """A stored version in the core's types."""
    from alignez_core.editing import EditPlan

    edits = tuple(
        EditPlan(active.layers, _tensor(e.u), _tensor(e.v), _tensor(e.c), active.steps, active.positions)
        for e in active.edits
    )
    prefix = None
    if active.prefix is not None:
        examples = tuple((user, assistant) for user, assistant in active.prefix.get("examples") or ())
        prefix = Prefix(active.prefix.get("system"), examples)
    config = FitConfig.from_dict(active.config)
    return Loaded(config, active.method, active.layers, edits, active.lookup, prefix)


def loaded_bytes(loaded: Loaded) -> int:
    """Bytes of a version's edits."""
    return sum(plan_bytes(plan) for plan in loaded.edits)


def plan_bytes(plan: EditPlan) -> int:
    """Bytes of one edit; a dose shares U and c with the version's own, which counts them twice."""
    return 4 * (plan.U.numel() + plan.V.numel() + plan.c.numel())


def edit_ratio(plan: EditPlan, x: Tensor) -> float | None:
    """‖y − x‖ / ‖x‖, mean over the edited layers.

    Args:
        x: (L_all, D) MLP outputs of every layer at one position.
    Returns: None when an edited layer's output is zero, so that there is nothing to compare with.
    """
    import torch

    rows = x[list(plan.layers)].float()
    read = torch.einsum("lrd,ld->lr", plan.U, rows) + plan.c
    change = torch.einsum("lr,lrd->ld", read, plan.V)
    size = rows.norm(dim=1)
    if bool((size == 0).any()):
        return None
    return float((change.norm(dim=1) / size).mean())


def _tensor(array: Any) -> Tensor:
    import torch

    # Without a copy where that is safe; torch must not wrap what is read-only.
    return torch.from_numpy(array) if array.flags.writeable else torch.tensor(array)


def _required(array: Any) -> Tensor:
    from profiles.errors import NotFound

    if array is None:
        raise NotFound("representations", "of this version")
    return _tensor(array)
