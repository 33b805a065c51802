"""Resolves a request's selection to the edit and the prefix that it runs with.

One SQL statement finds the version. Only sample-conditional versions need more: the query's embedding (a forward pass,
during which no connection is held) and one statement that reads the nearest fit queries. A version is immutable, so
everything that depends on it alone is cached.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog
from opentelemetry.trace import NoOpTracer, Tracer
from starlette.concurrency import run_in_threadpool

from alignez_core.prompts import Prefix
from api.generation.blame import CHOICE, blaming
from api.generation.plans import BoundedCache, Loaded, edit_ratio, load_plans, loaded_bytes
from api.generation.queries import SharedPasses
from api.generation.selection import Selection
from api.http.errors import ApiError
from api.metrics import Metrics
from profiles.service import (
    Caller,
    NearestGroups,
    ResolvedVersion,
    Unserved,
    load_active,
    nearest_groups,
    nearest_representations,
    pick_version,
    resolve_for_user,
)
from profiles.service.lookup import Neighbourhood
from profiles.uow import SessionFactory, UnitOfWork

if TYPE_CHECKING:  # torch stays out of processes without a model
    from torch import Tensor

    from alignez_core.editing import EditPlan
    from alignez_core.embeddings import QueryEncoder
    from alignez_core.engines.base import Engine

log = structlog.get_logger("api")


@dataclass(frozen=True)
class Query:
    """The text or token ids that a request's lookup uses.

    Both are kept, because separate query encoders take text only.

    Args:
        text: a chat's last question, or a text completion's prompt; None when the prompt came as token ids.
        ids: a text completion's prompt, used unchanged; None: the text is used, wrapped as in the fit.
    """

    text: str | None
    ids: Sequence[int] | None = None

    @property
    def is_empty(self) -> bool:
        """True if there is no text and no token to look up."""
        return not (self.text if self.ids is None else self.ids)


@dataclass(frozen=True)
class Personalisation:
    """The edit and prefix of one answer, and their description in the reply.

    `edit_ratio` is the relative change that the edit makes at the query's last token: ‖y − x‖ / ‖x‖, mean over the
    edited layers, where x is the MLP output for the wrapped query without an edit. It takes a forward pass, which only
    sample-conditional requests make; it is None for all others.

    Args:
        kind: "none", "global" (one edit for every query), "conditional" (an edit by lookup) or "prefix" (no edit).
        prefix: put before the conversation. prefix_tokens: its length in the prompt, known once it is rendered.
        reason: why an end user who has a profile is answered by the bare model.
    """

    kind: str = "none"
    plan: EditPlan | None = None
    profile: str | None = None
    profile_id: UUID | None = None
    version: int | None = None
    sha256: str | None = None
    neighbors: tuple[str, ...] | None = None
    edit_ratio: float | None = None
    prefix: Prefix | None = None
    prefix_tokens: int | None = None
    reason: str | None = None

    def report(self) -> dict[str, Any]:
        """The `alignez` object of a reply; all null for the bare base model."""
        return {
            "profile": self.profile,
            "version": self.version,
            "sha256": self.sha256,
            "neighbors": None if self.neighbors is None else list(self.neighbors),
            "edit_ratio": None if self.edit_ratio is None else round(self.edit_ratio, 6),
            "prefix_tokens": self.prefix_tokens,
            "reason": self.reason,
        }


BARE = Personalisation()


async def personal_of(
    personaliser: Personaliser, caller: Caller, selection: Selection, query: Query
) -> Personalisation:
    """The personalisation of a selection; runs in a thread unless the selection is the bare model.

    Raises: as `Personaliser.personalise`; an error about the profile names the request's field that chose it.
    """
    if selection.is_bare:
        return BARE
    with blaming(selection.param, CHOICE):
        return await run_in_threadpool(personaliser.personalise, caller, selection, query)


class _Encoder:
    """A query encoder, loaded at its first use.

    Each has its own lock: a tokenizer is not thread-safe, and loading takes seconds, during which requests that need
    another encoder or none must not wait.
    """

    def __init__(self, name: str, engine: Engine) -> None:
        self._name = name
        self._engine = engine
        self._lock = threading.Lock()
        self._encoder: QueryEncoder | None = None

    def encode(self, text: str) -> Tensor:
        """(E,) float32, unit length. Raises: ModelNotFound: the encoder cannot be loaded; the next request retries."""
        from alignez_core.embeddings import make_encoder

        with self._lock:
            if self._encoder is None:
                self._encoder = make_encoder(self._name, self._engine)
            return self._encoder.encode([text])[0]


class Personaliser:
    """Compiles the edits of requests to one engine. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        sessions: SessionFactory,
        metrics: Metrics,
        cache_size: int,
        cache_bytes: int = 1 << 30,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer or NoOpTracer()
        self._engine = engine
        self._sessions = sessions
        self._metrics = metrics
        self._versions: BoundedCache[UUID, Loaded] = BoundedCache(cache_size, cache_bytes, loaded_bytes)
        # An edit at another strength shares U and c with the version's own; both caches count them.
        self._doses: BoundedCache[tuple[UUID, int, float], EditPlan] = BoundedCache(
            cache_size, cache_bytes, lambda plan: plan.nbytes
        )
        self._passes = SharedPasses(engine)
        self._encoders: dict[str, _Encoder] = {}
        self._lock = threading.Lock()
        self._forgets = 0

    def forget(self, version_id: UUID | None) -> None:
        """Drops a version from the caches; None: all of them."""
        self._forgets += 1
        self._drop(version_id)

    def _drop(self, version_id: UUID | None) -> None:
        self._versions.drop(lambda key: version_id in (None, key))
        self._doses.drop(lambda key: version_id in (None, key[0]))

    def personalise(self, caller: Caller, selection: Selection, query: Query) -> Personalisation:
        """The personalisation of one request; blocks on the database and, if sample-conditional, on one forward pass.

        Raises: NotFound: profile, alias or version, also a foreign one. VersionNotReady. NoDefaultVersion.
            ModelMismatch: the version was fitted on another model than the one that is served.
        """
        with self._tracer.start_as_current_span("personalise") as span:
            made = self._personalise(caller, selection, query)
            span.set_attributes({"alignez.edit": made.kind, "alignez.version": made.version or 0})
        return made

    def _personalise(self, caller: Caller, selection: Selection, query: Query) -> Personalisation:
        started = time.perf_counter()
        forgets = self._forgets
        # Several transactions are safe: one statement resolves the version, and the content of a version is immutable.
        with UnitOfWork.reading(self._sessions, caller.tenant_id) as uow:
            picked = _pick(uow, caller, selection)
            if picked is None:
                return BARE
            if isinstance(picked, Unserved):
                return Personalisation(profile=picked.profile_name, reason=picked.reason)
            loaded = self._versions.get(picked.version_id) or self._load(uow, picked.version_id)
        try:
            made = self._compile(caller.tenant_id, picked, loaded, selection.strength, query)
        finally:
            if forgets != self._forgets:  # perhaps this version, read before that and cached after it
                self._drop(picked.version_id)
        self._metrics.personalise_seconds.observe(time.perf_counter() - started)
        return made

    def _compile(
        self, tenant_id: UUID, picked: ResolvedVersion, loaded: Loaded, strength: float | None, query: Query
    ) -> Personalisation:
        from alignez_core.embeddings import LM_ENCODER
        from alignez_core.errors import DegenerateEmbeddings

        dose = loaded.config.strength if strength is None else strength
        said = Personalisation(
            profile=picked.profile_name,
            profile_id=picked.profile_id,
            version=picked.number,
            sha256=picked.sha256,
            prefix=loaded.prefix,
        )
        if dose == 0:
            said = replace(said, prefix=None)  # strength 0 means the bare model, for prefixes too
        if not loaded.edits:
            if strength not in (None, 0, 1):
                raise ApiError(
                    400, "invalid_strength", f"profile.strength: {picked.profile_name} is a prompt without an edit, "
                    f"which is used (1) or not (0), got {strength:g}", param="profile.strength",
                )  # fmt: skip
            return replace(said, kind="none" if said.prefix is None else "prefix")
        # A separate encoder cannot read token ids; the version's first edit is used then.
        readable = query.text is not None or loaded.config.query_encoder == LM_ENCODER
        if loaded.lookup != "none" and readable and not query.is_empty:
            try:
                return self._conditional(tenant_id, said, picked.version_id, loaded, dose, query)
            except DegenerateEmbeddings as error:
                # These neighbours define no direction, but all fit queries together did during the fit.
                log.warning("conditional_fallback", version=str(picked.version_id), reason=str(error))
        return replace(said, kind="global", plan=self._dose(picked.version_id, loaded, 0, dose))

    def _conditional(
        self, tenant_id: UUID, said: Personalisation, version_id: UUID, loaded: Loaded, dose: float, query: Query
    ) -> Personalisation:
        config = loaded.config
        prompt = self._engine.prompt_format.wrap(query.text or "") if query.ids is None else query.ids
        with self._tracer.start_as_current_span("represent query"):
            plain = self._passes.represent(prompt)
            embedding = self._embed(config.query_encoder, plain, query.text or "").numpy()
        started = time.perf_counter()
        near: NearestGroups | Neighbourhood
        with self._tracer.start_as_current_span("lookup"):
            with UnitOfWork.reading(self._sessions, tenant_id) as uow:
                if loaded.lookup == "groups":
                    near = nearest_groups(uow, version_id, embedding, config.neighbors)
                else:
                    near = nearest_representations(uow, version_id, embedding, config.neighbors)
            if isinstance(near, NearestGroups):
                plan = self._dose(version_id, loaded, loaded.group_of(near), dose)
            else:
                plan = loaded.own_plan(near, dose)
        self._metrics.lookup_seconds.observe(time.perf_counter() - started)
        ratio = edit_ratio(plan, plain[0])
        if ratio is not None:
            self._metrics.edit_ratio.observe(ratio)
        neighbors = tuple(str(i) for i in near.query_ids)
        return replace(said, kind="conditional", plan=plan, neighbors=neighbors, edit_ratio=ratio)

    def _embed(self, name: str, plain: Tensor, text: str) -> Tensor:
        from alignez_core.embeddings import LM_ENCODER, from_representation

        if name == LM_ENCODER:
            return from_representation(plain)[0]
        with self._lock:
            encoder = self._encoders.setdefault(name, _Encoder(name, self._engine))
        return encoder.encode(text)

    def _dose(self, version_id: UUID, loaded: Loaded, group: int, dose: float) -> EditPlan:
        key = (version_id, group, dose)
        plan = self._doses.get(key)
        self._metrics.plan_cache.labels("miss" if plan is None else "hit").inc()
        if plan is None:
            plan = loaded.plan(group, dose)
            self._doses.put(key, plan)
        return plan

    def _load(self, uow: UnitOfWork, version_id: UUID) -> Loaded:
        from alignez_core.errors import ModelMismatch

        active = load_active(uow, version_id)
        served = self._engine.info.fingerprint
        if active.fingerprint != served:
            raise ModelMismatch(f"profile {active.profile_name!r} version {active.number}", served, active.fingerprint)
        loaded = load_plans(active)
        self._versions.put(version_id, loaded)
        return loaded


def _pick(uow: UnitOfWork, caller: Caller, selection: Selection) -> ResolvedVersion | Unserved | None:
    """The version that the selection names; None when its end user has no profile."""
    if selection.profile is None:
        return resolve_for_user(uow, caller, selection.end_user) if selection.end_user is not None else None
    return pick_version(
        uow,
        caller,
        selection.profile,
        alias=selection.alias,
        version=selection.version,
        end_user=selection.end_user,
    )
