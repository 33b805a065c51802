"""Rows for tests, made through the services that make them in production."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from profiles import jobs
from profiles.models import BaseModelRow, QuerySource, Role, Tenant
from profiles.repository.fits import SIDES, StoredDirections
from profiles.service import Caller, FitRequest, ModelFacts, create_key, create_tenant, register_base_model, request_fit
from profiles.uow import UnitOfWork
from profiles.vectors import Vector

_numbers = itertools.count(1)

QUERIES = [f"How do I learn skill number {i}?" for i in range(12)]


@dataclass(frozen=True, eq=False)
class Content:
    """Vectors of a made-up version: N queries, L layers, D dimensions."""

    embeddings: Vector
    sides: dict[str, Vector]
    layers: tuple[int, ...]
    directions: StoredDirections


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
        key, _ = create_key(self.uow, self._tenants[name].id, role, "test key")
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
        """A pending version of a new profile, or (`profile=…`) of an existing one."""
        spec = options.pop("spec", {"persona": {"preferred": "cheerful", "dispreferred": "gloomy"}})
        if "profile" not in options:
            options["name"] = name or f"profile-{next(_numbers)}"
        return request_fit(self.uow, caller, spec, **options)

    def claimed(self, request: FitRequest, lease_s: float = 60.0) -> jobs.Claim:
        """The request's job, taken by a worker."""
        claim = jobs.claim(self.uow, request.job.id, "worker-1", lease_s)
        assert claim is not None
        return claim

    def ready(
        self, caller: Caller, name: str | None = None, *, content: Content | None = None, **options: Any
    ) -> FitRequest:
        """A version that is ready, with its vectors."""
        request = self.fit(caller, name, **options)
        claim = self.claimed(request)
        jobs.bind_model(self.uow, claim, self.base_model())
        publish_content(self.uow, claim, content or make_content())
        self.uow.session.refresh(request.version)
        self.uow.session.refresh(request.job)
        self.uow.session.refresh(request.profile)
        return request


def make_content(n: int = 12, width: int = 6, layers: tuple[int, ...] = (1, 4), seed: int = 0) -> Content:
    """Random vectors."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Vector:
        return random.standard_normal(shape).astype(np.float32)

    embeddings = normal(n, width)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return Content(
        embeddings=embeddings,
        sides={side: normal(n, len(layers), width) for side in SIDES},
        layers=layers,
        directions=StoredDirections(
            layers=layers,
            theta_help=normal(len(layers), width),
            theta_harm=normal(len(layers), width),
            theta=normal(len(layers), width),
            tau=normal(len(layers)),
        ),
    )


def save_content(uow: UnitOfWork, claim: jobs.Claim, content: Content) -> None:
    """Stores queries, texts and vectors as a worker does."""
    positions = range(len(content.embeddings))
    jobs.save_queries(uow, claim, [jobs.QueryRecord(i, f"query {i}", QuerySource.GIVEN) for i in positions])
    texts = tuple(f"text {i}" for i in positions)
    jobs.save_chunk(uow, claim, jobs.TextChunk("characteristics", tuple(positions), texts, texts))
    jobs.save_representations(uow, claim, list(positions), content.layers, content.embeddings, content.sides)


def fitted(content: Content, **changes: Any) -> jobs.FittedVersion:
    """What a worker hands to `publish`."""
    values: dict[str, Any] = {
        "config": {"method": "transport", "neighbors": 10},
        "layers": content.layers,
        "directions": content.directions,
        "diagnostics": {"seconds": {}},
        "quality": "good",
        "quality_reasons": (),
        "sha256": "ab" * 32,
        "embedding_layer": 4,
        "tokens": 100,
    }
    return jobs.FittedVersion(**{**values, **changes})


def publish_content(uow: UnitOfWork, claim: jobs.Claim, content: Content) -> None:
    """Makes the claimed version ready."""
    save_content(uow, claim, content)
    jobs.publish(uow, claim, fitted(content))
