"""The `Method` port: inputs that a method needs, and the candidates that it returns.

Shapes: N samples, L edited layers, D hidden size, E embedding size, T token positions, R rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine
from alignez_core.prompts import Prefix
from alignez_core.readings import Readings
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MethodName
from alignez_core.spec.samples import Sample


@dataclass(frozen=True)
class Needs:
    """Inputs that a method requires; the fit makes them first.

    Args:
        characteristics: texts that describe either side's answers (A.4.1).
        help_answers: answers of the fit split under the preferred persona.
        harm_answers: answers of the fit split under the dispreferred persona; implies the preferred ones.
        readings: MLP outputs of all layers, for both sides.
        walks: an engine that can halt between blocks.
    """

    characteristics: bool = False
    help_answers: bool = True
    harm_answers: bool = False
    readings: bool = False
    walks: bool = False


@dataclass(frozen=True)
class Material:
    """Inputs of a fit.

    Args:
        samples: samples of the fit split.
        probes: samples that are not fitted on; `Candidate.explained` is measured on them.
        help, harm: answers by sample index; `harm` may be empty.
        readings: present if the method needs them.
        report: called with (done, total) between layers; an exception that it raises stops the fit.
    """

    engine: Engine
    config: FitConfig
    samples: Sequence[Sample]
    probes: Sequence[Sample] = ()
    help: Mapping[int, str] = field(default_factory=dict)
    harm: Mapping[int, str] = field(default_factory=dict)
    readings: Readings | None = None
    report: Callable[[int, int], None] = lambda done, total: None

    @property
    def groups(self) -> int:
        """Number of groups; more than 1 if queries have phrases of their own."""
        return 1 + max((sample.group for sample in self.samples), default=0)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to serve a persona: an edit, a prefix, or both.

    Args:
        name: readable name, unique among a method's candidates.
        settings: settings of the method, JSON values.
        edits: one plan per group; empty: no edit.
        prefix: text before the conversation.
        neighbor_rows: readings at the edited layers, from which the plan of each request is fitted.
        explained: edited layer → share of the squared gap on the probes that the edit removes.
    """

    name: str
    method: MethodName
    settings: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[EditPlan, ...] = ()
    prefix: Prefix | None = None
    neighbor_rows: Readings | None = None
    explained: Mapping[int, float] = field(default_factory=dict)
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """12 hex digits over everything that determines the answers; stored texts of a candidate carry it."""
        sha = hashlib.sha256(repr((self.method, [plan.sha256 for plan in self.edits], self.prefix)).encode())
        if self.neighbor_rows is not None:
            for rows in (self.neighbor_rows.help, self.neighbor_rows.harm):
                sha.update(rows.contiguous().numpy().astype("<f4").tobytes())
        return sha.hexdigest()[:12]

    def plan(self, group: int = 0) -> EditPlan | None:
        """The plan of a group of queries at strength 1; None without an edit."""
        return self.edits[group] if self.edits else None


class Method(Protocol):
    """A method that makes an edit or a prefix from a persona."""

    name: MethodName

    def needs(self, config: FitConfig) -> Needs:
        """Inputs that `candidates` requires."""
        ...

    def candidates(self, material: Material) -> list[Candidate]:
        """The method's candidates; the choice takes one of them.

        Raises: DegenerateEmbeddings: the material defines no edit. EngineCannotWalk: the engine cannot halt between
            blocks.
        """
        ...


def chosen_layers(config: FitConfig, n_layers: int, depths: Sequence[float]) -> tuple[int, ...]:
    """Layers to edit, ascending: explicit ones, all, a number of evenly spaced ones, or the default depths.

    Args:
        depths: default layers as shares of `n_layers`.
    """
    if isinstance(config.layers, tuple):
        return config.layers
    if config.layers == "all":
        return tuple(range(n_layers))
    if config.layers is None:
        return tuple(sorted({int(depth * n_layers) for depth in depths}))
    step = n_layers / (config.layers + 1)
    return tuple(sorted({min(n_layers - 1, int(step * (i + 1))) for i in range(config.layers)}))


def plan_at(method: MethodName, config: FitConfig, plan: EditPlan, strength: float) -> EditPlan:
    """A plan of strength 1 at another strength.

    The paper's edit is not linear in its strength. Therefore it is made again from its directions, the rows of U.
    """
    if method != "alignez":
        return plan.scaled(strength)
    harm, help_ = plan.U[:, 0], plan.U[:, 1]
    rule = config.edit_rule or "sequential"
    return EditPlan.alignez(plan.layers, harm, help_, strength, rule, steps=plan.steps, positions=plan.positions)


def vote(groups: Sequence[int], similarities: Sequence[float]) -> int:
    """The most frequent group of the neighbours; among equally frequent groups, the one with the nearer neighbours.

    Args:
        groups: groups of the K nearest fit queries, nearest first.
        similarities: (K,) cosines of these queries, descending.
    """
    weight: dict[int, float] = {}
    for group, similarity in zip(groups, similarities, strict=True):
        weight[group] = weight.get(group, 0.0) + 1.0 + 1e-6 * similarity
    return max(weight, key=lambda group: (weight[group], -groups.index(group)))
