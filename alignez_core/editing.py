"""The one form of edit that engines know: a low-rank affine map of a layer's MLP output.

Every method compiles to `y = x + (x·Uᵀ + c)·V` with U, V (R, D) and c (R,) per layer, R ≤ 8 (`MAX_RANK`). Rows of
different methods and ranks share a batch, because zero rows of U, V and c change nothing. With "all positions" the
edit is a LoRA on `down_proj` with a bias.

Position rule (`EditPlan.span`): position t of a sequence is edited iff
`prompt_length − 1 ≤ t < prompt_length − 1 + steps`; `steps=None` has no end. So all prompt positions but the last
keep a key/value cache that no profile has touched.

The formula stands here twice, for two layouts of memory: `low_rank_edit` for rows of positions with an edit each, and
`gathered_edit` for single tokens that name their edits in one table. Engines call these and hold no formula.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignez_core.errors import DegenerateEmbeddings, InvalidInput, ModelMismatch
from alignez_core.spec.limits import EDIT_RULES, MAX_RANK, MAX_STRENGTH, EditRule, Positions

#: End of an edit that has none, as a position.
NO_END = 2**62

#: Below this share of its length left over, help is parallel to harm and "orthogonal" has nothing to point at.
_PARALLEL = 1e-4


def low_rank_edit(x: Tensor, u: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """x + (x·uᵀ + c)·v, an edit for each row of positions.

    Args:
        x: (B, T, D) float32. u, v: (B, R, D) float32. c: (B, R) float32.
    Returns: (B, T, D) float32.
    """
    read = torch.baddbmm(c.unsqueeze(1), x, u.transpose(1, 2))
    return torch.baddbmm(x, read, v)


def gathered_edit(x: Tensor, u: Tensor, v: Tensor, c: Tensor, slots: Tensor) -> Tensor:
    """x + (x·uᵀ + c)·v, an edit for each token; direction by direction, so that no (T, R, D) tensor is made.

    Args:
        x: (T, D) float32. u, v: (R, S, D) float32 tables of S edits. c: (R, S) float32. slots: (T,) int64, below S.
    Returns: (T, D) float32.
    """
    y = x
    for u_r, v_r, c_r in zip(u, v, c, strict=True):
        read = (x * u_r[slots]).sum(-1, keepdim=True) + c_r[slots].unsqueeze(1)
        y = y + read * v_r[slots]
    return y


def apply_edit(
    x: Tensor,
    theta_harm: Tensor,
    theta_help: Tensor,
    strength: float = 1.0,
    rule: EditRule = "sequential",
) -> Tensor:
    """The paper's edit written as the paper writes it; engines use the equivalent `EditPlan`.

    Args:
        x: (..., D) MLP outputs.
        theta_harm: (D,) direction to remove; any length but zero.
        theta_help: (D,) direction to amplify; any length but zero.
        strength: s; 1 is the paper's edit, 0 changes nothing.
        rule: "sequential" (section 2.3), "simultaneous" (appendix B) or "orthogonal" (ours: help made orthogonal to
            harm first, so that both steps commute).
    Returns: (..., D), the dtype of `x`; arithmetic in float32 (float64 stays float64).
    Raises: DegenerateEmbeddings: a zero direction, or "orthogonal" with parallel directions.
    Source: AlignEZ (arXiv 2406.03642), section 2.3 and appendix B. Deviation: `strength` scales both steps.
    """
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = _unit(theta_harm.to(work), "theta_harm")
    p = _unit(theta_help.to(work), "theta_help")
    if _check_rule(rule) == "orthogonal":
        p = _orthogonal(p, h)
    x0 = x.to(work)
    x1 = x0 - strength * (x0 @ h).unsqueeze(-1) * h
    read = x0 if rule == "simultaneous" else x1
    x2 = x1 + strength * (read @ p).unsqueeze(-1) * p
    return x2.to(x.dtype)


@dataclass(frozen=True, eq=False)
class EditPlan:
    """Edit of the MLP outputs of some layers, for one request of a batch.

    Identity is the content hash `sha256`, never a name: two plans with the same numbers are the same plan.

    Args:
        layers: L distinct layer indices, 0-based (the MLP of decoder block l), ascending.
        U: (L, R, D) float32, what is read.
        V: (L, R, D) float32, what is written.
        c: (L, R) float32, offsets of what is read.
        steps: number of edited positions from the last prompt token on; None: no end.
        positions: "answer" (the position rule above) or "all" (every position, the prompt's too).
    """

    layers: tuple[int, ...]
    U: Tensor
    V: Tensor
    c: Tensor
    steps: int | None = None
    positions: Positions = "answer"

    def __post_init__(self) -> None:
        n_layers = len(self.layers)
        if not n_layers or sorted(set(self.layers)) != list(self.layers) or min(self.layers) < 0:
            raise InvalidInput("layers", "must be distinct, non-negative, ascending and not empty")
        if self.U.ndim != 3 or self.U.shape != self.V.shape or self.c.shape != self.U.shape[:2]:
            raise InvalidInput("U, V, c", f"shapes {_shapes(self.U, self.V, self.c)} are not (L,R,D), (L,R,D), (L,R)")
        if self.U.shape[0] != n_layers:
            raise InvalidInput("U", f"holds {self.U.shape[0]} layers, but {n_layers} are named")
        if not 1 <= self.U.shape[1] <= MAX_RANK:
            raise InvalidInput("U", f"rank {self.U.shape[1]} is outside 1 to {MAX_RANK}")
        if self.steps is not None and self.steps < 1:
            raise InvalidInput("steps", "must be at least 1, or None for no end")
        if self.positions not in get_args(Positions):
            raise InvalidInput("positions", f"must be one of {get_args(Positions)}")
        for name in ("U", "V", "c"):
            value = getattr(self, name).detach().to("cpu", torch.float32).contiguous()
            if value.numel() and not all(math.isfinite(float(bound)) for bound in torch.aminmax(value)):
                raise DegenerateEmbeddings(f"the edit's {name} holds values that are not finite")
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EditPlan) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @property
    def rank(self) -> int:
        """R, the number of directions read and written per layer."""
        return int(self.U.shape[1])

    @property
    def hidden_size(self) -> int:
        """D, the width of the edited activations."""
        return int(self.U.shape[2])

    @property
    def nbytes(self) -> int:
        """Size of U, V and c in bytes."""
        return self.U.nbytes + self.V.nbytes + self.c.nbytes

    @cached_property
    def is_identity(self) -> bool:
        """True when the plan changes nothing (strength 0); engines then skip it, so the row is bit-equal."""
        return not bool(self.V.any())

    def span(self, prompt_length: int) -> tuple[int, int]:
        """(first, end): positions first ≤ t < end of a sequence with this prompt length are edited."""
        if self.positions == "all":
            return 0, NO_END
        first = prompt_length - 1
        return first, NO_END if self.steps is None else first + self.steps

    def covers(self, position: int, prompt_length: int) -> bool:
        """True if the token at `position` (0-based) of a sequence with this prompt length is edited."""
        first, end = self.span(prompt_length)
        return first <= position < end

    def check_fits(self, n_layers: int, hidden_size: int) -> None:
        """Raises: ModelMismatch: the plan names a layer or a width that the model does not have."""
        if self.layers[-1] >= n_layers:
            raise ModelMismatch("edited layer", f"below {n_layers}", self.layers[-1])
        if self.hidden_size != hidden_size:
            raise ModelMismatch("edit width", hidden_size, self.hidden_size)

    def apply(self, x: Tensor, layer: int) -> Tensor:
        """The plan's edit of one layer's MLP output, every position: the reference that engines must match.

        Args:
            x: (..., D) MLP output of `layer`.
        Returns: (..., D) in x's dtype; `x` itself when the layer is not edited.
        """
        if layer not in self.layers or self.is_identity:
            return x
        i = self.layers.index(layer)
        u, v, c = (t[i : i + 1].to(x.device) for t in (self.U, self.V, self.c))
        rows = x.float().reshape(1, -1, x.shape[-1])
        return low_rank_edit(rows, u, v, c).to(x.dtype).view(x.shape)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over every number that decides the outcome, little-endian float32; made when first asked for."""
        sha = hashlib.sha256(b"alignez-edit-plan-1")
        steps = -1 if self.steps is None else self.steps
        sha.update(struct.pack("<iii", len(self.layers), self.rank, self.hidden_size))
        sha.update(struct.pack(f"<{len(self.layers)}i", *self.layers))
        sha.update(struct.pack("<i", steps) + self.positions.encode())
        for value in (self.U, self.V, self.c):
            sha.update(value.numpy().astype("<f4").tobytes())
        return sha.hexdigest()

    def scaled(self, strength: float) -> EditPlan:
        """The same edit at dose s: V times s, so that s = 0 is the bare model and s = 1 this plan.

        Of the paper's edit use `alignez` at another strength: its V is not linear in s.
        Raises: InvalidInput: s outside 0 to 8.
        """
        _check_strength(strength)
        return self if strength == 1.0 else replace(self, V=strength * self.V)

    @classmethod
    def from_arrays(
        cls,
        layers: Sequence[int],
        u: NDArray[np.float32],
        v: NDArray[np.float32],
        c: NDArray[np.float32],
        steps: int | None,
        positions: Positions,
    ) -> EditPlan:
        """A plan over stored arrays. Args: layers: L, ascending. u, v: (L, R, D). c: (L, R)."""
        tables = torch.from_numpy(u), torch.from_numpy(v), torch.from_numpy(c)
        return cls(tuple(layers), *tables, steps, positions)

    @classmethod
    def low_rank(
        cls,
        layers: Sequence[int],
        U: Tensor,
        V: Tensor,
        c: Tensor,
        strength: float = 1.0,
        steps: int | None = None,
        *,
        positions: Positions = "answer",
    ) -> EditPlan:
        """Any low-rank affine edit, layers in any order.

        Args:
            layers: L layer indices. U, V: (L, R, D). c: (L, R); rows belong to the layers in this order.
        """
        _check_strength(strength)
        order = sorted(range(len(layers)), key=lambda i: layers[i])
        ascending = tuple(int(layers[i]) for i in order)
        return cls(ascending, U[order], strength * V[order], c[order], steps, positions)

    @classmethod
    def alignez(
        cls,
        layers: Sequence[int],
        theta_harm: Tensor,
        theta_help: Tensor,
        strength: float = 1.0,
        rule: EditRule = "sequential",
        *,
        positions: Positions = "answer",
        steps: int | None = None,
    ) -> EditPlan:
        """The paper's edit: remove the component along harm, double the one along help, at every answer position.

        With unit h, p and strength s the sequential rule is U = [h; p], V = [−s·h − s²⟨p,h⟩·p ; s·p], c = 0:
        substituting x1 = x − s⟨x,h⟩h into x2 = x1 + s⟨x1,p⟩p gives
        x2 = x + ⟨x,h⟩(−s·h − s²⟨h,p⟩·p) + ⟨x,p⟩(s·p).

        Args:
            layers: L layer indices; theta rows belong to them in this order.
            theta_harm, theta_help: (L, D), any length but zero; made unit here.
        Raises: DegenerateEmbeddings: a zero direction, or "orthogonal" with parallel directions.
        Source: AlignEZ (arXiv 2406.03642), section 2.3; "simultaneous" is appendix B, "orthogonal" is ours.
        """
        _check_rule(rule)
        _check_strength(strength)
        order, (harm, help_) = _sorted_rows(layers, theta_harm, theta_help)
        h = _unit(harm, "theta_harm")
        p = _unit(help_, "theta_help")
        if rule == "orthogonal":
            p = torch.stack([_orthogonal(a, b) for a, b in zip(p, h, strict=True)])
        cross = torch.zeros(len(order), 1) if rule == "simultaneous" else (p * h).sum(-1, keepdim=True)
        v = torch.stack([-strength * h - strength**2 * cross * p, strength * p], dim=1)
        return cls(order, torch.stack([h, p], dim=1), v, torch.zeros(len(order), 2), steps, positions)

    @classmethod
    def transport(
        cls,
        layers: Sequence[int],
        theta: Tensor,
        tau: Tensor,
        strength: float = 1.0,
        steps: int | None = 1,
        *,
        positions: Positions = "answer",
    ) -> EditPlan:
        """Moves the component along theta to where the persona has it: y = x + s(tau − ⟨x,theta⟩)theta.

        U = −theta, c = tau, V = s·theta. Idempotent at s = 1.

        Args:
            theta: (L, D), any length but zero; made unit here. tau: (L,), the persona's own component.
        Raises: DegenerateEmbeddings: a zero direction.
        Source: ours (the paper doubles what is there; this sets it), DESIGN, section 3.4.
        """
        _check_strength(strength)
        order, (rows, levels) = _sorted_rows(layers, theta, tau.reshape(-1, 1))
        t = _unit(rows, "theta").unsqueeze(1)
        return cls(order, -t, strength * t, levels, steps, positions)

    @classmethod
    def additive(
        cls,
        layers: Sequence[int],
        vectors: Tensor,
        strength: float = 1.0,
        *,
        steps: int | None = None,
        positions: Positions = "answer",
    ) -> EditPlan:
        """Adds s·vector to each edited position (contrastive activation addition, the usual baseline).

        U = 0, c = s, V = vectors. Args: vectors: (L, D), their length counts.
        """
        _check_strength(strength)
        order, (rows,) = _sorted_rows(layers, vectors)
        v = strength * rows.unsqueeze(1)
        return cls(order, torch.zeros_like(v), v, torch.ones(len(order), 1), steps, positions)


def _sorted_rows(layers: Sequence[int], *values: Tensor) -> tuple[tuple[int, ...], list[Tensor]]:
    """The layers ascending, and each (L, …) tensor's float32 rows in that order."""
    index = sorted(range(len(layers)), key=lambda i: layers[i])
    in_order = index == list(range(len(layers)))
    rows = []
    for value in values:
        if value.ndim != 2 or value.shape[0] != len(layers):
            raise InvalidInput("layers", f"{len(layers)} layers do not match a tensor of shape {tuple(value.shape)}")
        given = value.detach().to("cpu", torch.float32)
        rows.append(given if in_order else given[index])
    return tuple(int(layers[i]) for i in index), rows


def _unit(vectors: Tensor, name: str) -> Tensor:
    """(…, D) vectors at length 1. Raises: DegenerateEmbeddings: one has none."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    shortest, longest = (float(bound) for bound in torch.aminmax(norms))  # both NaN when any is
    if not (shortest >= 1e-12 and longest < math.inf):
        bad = longest if shortest >= 1e-12 else shortest
        raise DegenerateEmbeddings(f"{name} has no direction (length {bad:g})")
    unit: Tensor = vectors / norms
    return unit


def _orthogonal(p: Tensor, h: Tensor) -> Tensor:
    rest = p - (p @ h) * h
    if float(rest.norm()) < _PARALLEL:
        raise DegenerateEmbeddings("theta_help is parallel to theta_harm: edit_rule='orthogonal' has nothing to keep")
    return _unit(rest, "theta_help")


def _check_rule(rule: str) -> str:
    if rule not in EDIT_RULES:
        raise InvalidInput("edit_rule", f"{rule!r} is not one of {', '.join(EDIT_RULES)}")
    return rule


def _check_strength(strength: float) -> None:
    if not 0.0 <= strength <= MAX_STRENGTH:
        raise InvalidInput("strength", f"{strength} is outside 0 to {MAX_STRENGTH:g}")


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors)
