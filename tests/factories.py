"""Rows for tests, made through the services that make them in production."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from profiles.fitting import claims as jobs
from profiles.fitting.content import save_embeddings, save_queries, save_representations, save_texts
from profiles.fitting.publishing import FittedVersion, Verdict, publish
from profiles.fitting.request import FitRequest, request_fit
from profiles.models import BaseModelRow, QuerySource, QuerySplit, Role, Tenant
from profiles.repository.fits import SIDES, StoredEdit
from profiles.service import Caller, KeySpec, ModelFacts, create_key, create_tenant, register_base_model
from profiles.uow import UnitOfWork
from profiles.vectors import Vector

_numbers = itertools.count(1)

QUERIES = [f"How do I learn skill number {i}?" for i in range(12)]


#: A report with what the store and the gate's readers look at.
REPORT: dict[str, Any] = {"judge": "self", "comparisons": {"over_bare": {"n": 8, "net": 0.5, "interval": [0.2, 0.8]}}}


@dataclass(frozen=True, eq=False)
class Content:
    """Vectors of a made-up version: N queries of the fit split, L layers, D dimensions, one edit per group.

    Args:
        held_out: queries behind the N, which nothing is fitted on. groups: by query.
    """

    embeddings: Vector
    sides: dict[str, Vector]
    layers: tuple[int, ...]
    edits: tuple[StoredEdit, ...]
    groups: tuple[int, ...]
    held_out: int = 0

    @property
    def lookup(self) -> Literal["none", "groups", "neighbors"]:
        """What a request with this version looks up."""
        return "groups" if len(self.edits) > 1 else "neighbors" if self.sides else "none"


@dataclass
class Factory:
    """Makes rows in one unit of work."""

    uow: UnitOfWork
    _tenants: dict[str, Tenant] = field(default_factory=dict)

    def caller(self, role: Role = Role.MEMBER, *, tenant: str | None = None) -> Caller:
        """A caller with a key of its own, of a new tenant or of one named before."""
        name = tenant or f"tenant-{next(_numbers)}"
        if name not in self._tenants:
            self._tenants[name] = create_tenant(self.uow, name)
        key, _ = create_key(self.uow, self._tenants[name].id, KeySpec(role, "test key"))
        return Caller(key.id, key.tenant_id, role)

    def base_model(self, name: str = "nano", **facts: Any) -> BaseModelRow:
        given: dict[str, Any] = {
            "source": f"models/{name}",
            "fingerprint": f"{name}-fingerprint",
            "n_layers": 8,
            "hidden_size": 6,
            "context_length": 512,
            "prompt_format": "plain",
        }
        return register_base_model(self.uow, ModelFacts(name=name, **{**given, **facts}))

    def fit(self, caller: Caller, name: str | None = None, **options: Any) -> FitRequest:
        """A pending version of a new profile, or (`profile=…`) of an existing one; queries may be plain strings."""
        spec = dict(options.pop("spec", {"persona": {"preferred": "cheerful", "dispreferred": "gloomy"}}))
        if "queries" in spec:
            spec["queries"] = [{"text": query} if isinstance(query, str) else query for query in spec["queries"]]
        if "profile" not in options:
            options["name"] = name or f"profile-{next(_numbers)}"
        return request_fit(self.uow, caller, spec, **options)

    def claimed(self, request: FitRequest, lease_s: float = 60.0) -> jobs.Claim:
        """The request's job, taken by a worker."""
        claim = jobs.claim(self.uow, request.job.id, "worker-1", lease_s)
        assert claim is not None
        return claim

    def ready(
        self,
        caller: Caller,
        name: str | None = None,
        *,
        content: Content | None = None,
        changes: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> FitRequest:
        """A version that is ready, with its vectors. Args: changes: as `fitted` takes them."""
        request = self.fit(caller, name, **options)
        claim = self.claimed(request)
        jobs.bind_model(self.uow, claim, self.base_model())
        publish_content(self.uow, claim, content or make_content(), **(changes or {}))
        self.uow.session.refresh(request.version)
        self.uow.session.refresh(request.job)
        self.uow.session.refresh(request.profile)
        return request


def make_content(
    n: int = 12,
    width: int = 6,
    layers: tuple[int, ...] = (1, 4),
    seed: int = 0,
    *,
    rank: int = 2,
    groups: int = 1,
    rows: bool = True,
    held_out: int = 0,
) -> Content:
    """Random vectors. Args: rows: with representations to fit a request's own edit on."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Vector:
        return random.standard_normal(shape).astype(np.float32)

    embeddings = normal(n, width)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    table = (len(layers), rank, width)
    return Content(
        embeddings=embeddings,
        sides={side: normal(n, len(layers), width) for side in SIDES} if rows and groups == 1 else {},
        layers=layers,
        edits=tuple(StoredEdit(normal(*table), normal(*table), normal(*table[:2])) for _ in range(groups)),
        groups=tuple(i % groups for i in range(n)),
        held_out=held_out,
    )


def query_row(position: int, **columns: Any) -> dict[str, Any]:
    """A query of a fit, as `save_queries` takes it."""
    row: dict[str, Any] = {"text": f"query {position}", "source": QuerySource.GIVEN, "split": QuerySplit.FIT}
    return {"position": position, "persona_group": 0, **row, **columns}


def save_content(uow: UnitOfWork, claim: jobs.Claim, content: Content) -> None:
    """Stores queries, texts and vectors as a worker does."""
    n = len(content.embeddings)
    positions = range(n)
    queries = [query_row(i, persona_group=content.groups[i]) for i in positions]
    queries += [
        query_row(i, source=QuerySource.BANK, split=QuerySplit.HELD_OUT) for i in range(n, n + content.held_out)
    ]
    save_queries(uow, claim, queries)
    for kind in ("help_response", "harm_response"):
        save_texts(uow, claim, kind, {i: f"{kind} {i}" for i in positions})
    if content.lookup != "none":
        save_embeddings(uow, claim, list(positions), content.embeddings)
    if content.lookup == "neighbors":
        save_representations(uow, claim, list(positions), content.layers, content.sides)


def fitted(content: Content, **changes: Any) -> FittedVersion:
    """What a worker hands to `publish`.

    Args:
        changes: fields of `FittedVersion`, or of its verdict.
    """
    verdict: dict[str, Any] = {"judge": "self", "quality": "good", "reasons": (), "report": REPORT}
    verdict |= {name: changes.pop(name) for name in (*verdict, "choice") if name in changes}
    lookup = content.lookup
    values: dict[str, Any] = {
        "config": {"method": "alignez" if lookup == "neighbors" else "distill", "neighbors": 10},
        "method": "alignez" if lookup == "neighbors" else "distill",
        "layers": content.layers,
        "edits": content.edits,
        "diagnostics": {"last_attempt": {}},
        "sha256": "ab" * 32,
        "verdict": Verdict(**verdict),
        "lookup": lookup,
        "looked_up": 0 if lookup == "none" else len(content.embeddings),
        "embedding_layer": None if lookup == "none" else 4,
    }
    return FittedVersion(**{**values, **changes})


def publish_content(uow: UnitOfWork, claim: jobs.Claim, content: Content, **changes: Any) -> None:
    """Makes the claimed version ready. Args: changes: as `fitted` takes them."""
    save_content(uow, claim, content)
    publish(uow, claim, fitted(content, **changes))
