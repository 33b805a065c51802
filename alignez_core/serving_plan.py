"""The edit of a query: a candidate's only plan, the plan of a group chosen by vote, or one fitted on its neighbours.

The API does the same for each request, with pgvector in place of `neighbors.nearest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from alignez_core.editing import EditPlan
from alignez_core.embeddings import QueryEncoder, make_encoder
from alignez_core.engines.base import Engine
from alignez_core.methods.alignez import neighbor_plan
from alignez_core.methods.base import Candidate, plan_at, vote
from alignez_core.neighbors import nearest
from alignez_core.proof.report import DosedPlan
from alignez_core.readings import Readings
from alignez_core.spec.config import FitConfig
from alignez_core.spec.samples import Sample


class PlanSource:
    """Plans of queries, made as in serving.

    Args:
        fit: samples of the fit split, in order.
        readings: readings of some or all of these samples; only samples with readings are then used as neighbours.
    """

    def __init__(self, engine: Engine, config: FitConfig, fit: Sequence[Sample], readings: Readings | None) -> None:
        self._engine = engine
        self._config = config
        self._embedded: dict[int, Tensor] = {}
        kept = {s.index for s in fit} if readings is None else set(readings.samples)
        self._bank = [s for s in fit if s.index in kept]

    @cached_property
    def embeddings(self) -> Tensor:
        """(N, E) unit rows of the samples that can be neighbours."""
        return self._encoder.encode([s.query for s in self._bank])

    @cached_property
    def _encoder(self) -> QueryEncoder:
        return make_encoder(self._config.query_encoder, self._engine)

    def looks_up(self, candidate: Candidate) -> bool:
        """True if a request needs its nearest fit queries."""
        return candidate.neighbor_rows is not None or len(candidate.edits) > 1

    def plan(self, candidate: Candidate, sample: Sample, strength: float = 1.0) -> EditPlan | None:
        """The edit of a sample's query, which may be any query. None: the candidate has no edit."""
        if not candidate.edits:
            return None
        strength *= self._config.strength
        if not self.looks_up(candidate):
            return plan_at(candidate.method, self._config, candidate.edits[0], strength)
        k = min(self._config.neighbors, len(self._bank))
        embedding = self._embed(sample)
        near = nearest(embedding, self.embeddings, k)
        if candidate.neighbor_rows is not None:
            rows = candidate.neighbor_rows.rows(near.tolist())
            return neighbor_plan(self._config, rows.layers, rows.help, rows.harm, strength)
        similarities = (self.embeddings[near] @ embedding).tolist()
        group = vote([self._bank[i].group for i in near.tolist()], similarities)
        return plan_at(candidate.method, self._config, candidate.edits[group], strength)

    def dosed(self, candidate: Candidate) -> DosedPlan:
        """`plan` of one candidate as a function of sample and strength."""
        return lambda sample, strength: self.plan(candidate, sample, strength)

    def _embed(self, sample: Sample) -> Tensor:
        if sample.index not in self._embedded:
            self._embedded[sample.index] = self._encoder.encode([sample.query])[0]
        return self._embedded[sample.index]
