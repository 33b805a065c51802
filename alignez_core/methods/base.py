"""The `Method` port: what a method needs to be made ready, and the candidates that it offers for the choice.

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
from alignez_core.self_preference import Sample
from alignez_core.spec.config import FitConfig
from alignez_core.spec.limits import MethodName


@dataclass(frozen=True)
class Needs:
    """Inputs that the pipeline makes before a method fits.

    Args:
        characteristics: texts that describe either side's answers (A.4.1).
        help_answers: answers of the fit split under the preferred persona.
        harm_answers: answers under the dispreferred persona beside those under the preferred one.
        readings: MLP outputs of all layers under help and harm.
        walks: an engine that halts between blocks.
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
        samples: of the fit split, each with its group. probes: samples that are not fitted on, to measure what a fit
            explains.
        help, harm: answers by sample index; harm may be empty.
        readings: present if the method needs them.
        report: called with (done, total) between blocks of layers; raising from it stops the fit.
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
        """Groups of samples with one persona each; 1 unless queries bring phrases of their own."""
        return 1 + max((sample.group for sample in self.samples), default=0)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to serve a persona: an edit, a prefix, or both.

    Args:
        name: unique among a method's candidates, for people.
        method: that made it. settings: of the method, JSON-able.
        edits: one plan per group; empty: no edit.
        prefix: put before the conversation.
        neighbor_rows: help and harm readings at the edited layers, from which each request's own plan is fitted.
        explained: by edited layer, the share of the squared gap on probe samples that the edit fits.
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
        """Twelve hex digits over all that decides its answers, so that texts stored for another are never taken."""
        sha = hashlib.sha256(repr((self.method, [plan.sha256 for plan in self.edits], self.prefix)).encode())
        if self.neighbor_rows is not None:
            for rows in (self.neighbor_rows.help, self.neighbor_rows.harm):
                sha.update(rows.contiguous().numpy().astype("<f4").tobytes())
        return sha.hexdigest()[:12]

    def plan(self, group: int = 0) -> EditPlan | None:
        """The plan of a group of queries, at strength 1; None without an edit."""
        return self.edits[group] if self.edits else None


class Method(Protocol):
    """A way to turn a persona into an edit or a prefix."""

    name: MethodName

    def needs(self, config: FitConfig) -> Needs:
        """Inputs that `candidates` needs."""
        ...

    def candidates(self, material: Material) -> list[Candidate]:
        """The method's forms, of which the choice takes one; a single one needs no choice.

        Raises: DegenerateEmbeddings: nothing to find. EngineCannotWalk: the engine does not halt between blocks.
        """
        ...


def plan_at(method: MethodName, config: FitConfig, plan: EditPlan, strength: float) -> EditPlan:
    """A stored plan (of strength 1) at another dose.

    The paper's edit is not linear in its strength, so it is made anew from the directions, which are its U.
    """
    if method != "alignez":
        return plan.scaled(strength)
    harm, help_ = plan.U[:, 0], plan.U[:, 1]
    rule = config.edit_rule or "sequential"
    return EditPlan.alignez(plan.layers, harm, help_, strength, rule, steps=plan.steps, positions=plan.positions)


def vote(groups: Sequence[int], similarities: Sequence[float]) -> int:
    """The group that most of the neighbours belong to; the nearer neighbour decides a tie.

    Args:
        groups: of the K nearest fit queries, nearest first. similarities: theirs, descending.
    """
    weight: dict[int, float] = {}
    for group, similarity in zip(groups, similarities, strict=True):
        weight[group] = weight.get(group, 0.0) + 1.0 + 1e-6 * similarity
    return max(weight, key=lambda group: (weight[group], -groups.index(group)))
