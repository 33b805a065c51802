"""From a selection to the edit and the prefix that a request runs with.

One statement says which version it is. Only sample-conditional versions need more: the query's embedding (a forward
pass, no connection held) and one statement that reads the nearest fit queries. A version never changes, so everything
made from it alone is kept.
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
from api.generation.plans import Loaded, Recent, edit_ratio, load_plans, loaded_bytes, plan_bytes
from api.generation.queries import SharedPasses
from api.generation.selection import Selection
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
    """The text or token ids that a request is looked up with.

    Both are kept, because encoders beside the language model read text only.

    Args:
        text: a chat's last question, or a text completion's prompt; None when the prompt came as token ids.
        ids: a text completion's prompt, which the model reads as it stands; None: the text, wrapped as in the fit.
    """

    text: str | None
    ids: Sequence[int] | None = None

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to look up."""
        return not (self.text if self.ids is None else self.ids)


@dataclass(frozen=True)
class Personalisation:
    """The edit and prefix of one answer, and the report on them in its reply.

    `edit_ratio` is how far the edit moves the model at the query's last token: ‖y − x‖ / ‖x‖, mean over the edited
    layers, x the MLP output for the bare, wrapped query. It needs a forward pass that only sample-conditional requests
    make anyway; otherwise it is None.

    Args:
        kind: "none", "global" (one edit for every query), "conditional" (an edit by lookup) or "prefix" (no edit).
        prefix: put before the conversation. prefix_tokens: by which it makes the prompt longer; known when rendered.
        reason: why an end user with a profile is answered by the bare model.
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
    """The personalisation of a selection; the bare model costs nothing, anything else goes to a thread.

    Raises: as `Personaliser.personalise`; errors about the choice name the field that made it.
    """
    if selection.is_bare:
        return BARE
    with blaming(selection.param, CHOICE):
        return await run_in_threadpool(personaliser.personalise, caller, selection, query)


class _Encoder:
    """A query encoder that is loaded at its first use.

    It has a lock of its own: tokenizers must not be used from two threads at once, and loading takes seconds in which
    requests that need no encoder, or another one, must not wait.
    """

    def __init__(self, name: str, engine: Engine) -> None:
        self._name = name
        self._engine = engine
        self._lock = threading.Lock()
        self._encoder: QueryEncoder | None = None

    def encode(self, text: str) -> Tensor:
        """(E,) float32, unit length. Raises: ModelNotFound: it cannot be loaded; the next request tries again."""
        from alignez_core.embeddings import make_encoder

        with self._lock:
            if self._encoder is None:
                self._encoder = make_encoder(self._name, self._engine)
            return self._encoder.encode([text])[0]


class Personaliser:
    """Compiles edits for one engine. Safe to call from any thread."""

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
        self._versions: Recent[UUID, Loaded] = Recent(cache_size, cache_bytes, loaded_bytes)
        self._doses: Recent[tuple[UUID, int, float], EditPlan] = Recent(cache_size, cache_bytes, plan_bytes)
        self._passes = SharedPasses(engine)
        self._encoders: dict[str, _Encoder] = {}
        self._lock = threading.Lock()

    def personalise(self, caller: Caller, selection: Selection, query: Query) -> Personalisation:
        """The edit for one request; blocks for the database and, sample-conditional, for one forward pass.

        Raises: NotFound: profile, alias or version, also a foreign one. VersionNotReady. NoDefaultVersion.
            ModelMismatch: the version was fitted on another model than the one that is served.
        """
        with self._tracer.start_as_current_span("personalise") as span:
            made = self._personalise(caller, selection, query)
            span.set_attributes({"alignez.edit": made.kind, "alignez.version": made.version or 0})
        return made

    def _personalise(self, caller: Caller, selection: Selection, query: Query) -> Personalisation:
        started = time.perf_counter()
        # Not one transaction: which version is one statement, and what is read of a version never changes.
        with UnitOfWork.reading(self._sessions) as uow:
            picked = _pick(uow, caller, selection)
            if picked is None:
                return BARE
            if isinstance(picked, Unserved):
                return Personalisation(profile=picked.profile_name, reason=picked.reason)
            loaded = self._versions.get(picked.version_id) or self._load(uow, picked.version_id)
        made = self._compile(picked, loaded, selection.strength, query)
        self._metrics.personalise_seconds.observe(time.perf_counter() - started)
        return made

    def _compile(
        self, picked: ResolvedVersion, loaded: Loaded, strength: float | None, query: Query
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
            said = replace(said, prefix=None)  # strength 0 is the bare model, whatever the version holds
        if not loaded.edits:
            return replace(said, kind="none" if said.prefix is None else "prefix")
        # Token ids say nothing to an encoder other than the model; then the first edit serves.
        readable = query.text is not None or loaded.config.query_encoder == LM_ENCODER
        if loaded.lookup != "none" and readable and not query.is_empty:
            try:
                return self._conditional(said, picked.version_id, loaded, dose, query)
            except DegenerateEmbeddings as error:
                # These few neighbours define no direction; all fit queries together did, when the version was made.
                log.warning("conditional_fallback", version=str(picked.version_id), reason=str(error))
        return replace(said, kind="global", plan=self._dose(picked.version_id, loaded, 0, dose))

    def _conditional(
        self, said: Personalisation, version_id: UUID, loaded: Loaded, dose: float, query: Query
    ) -> Personalisation:
        config = loaded.config
        prompt = self._engine.prompt_format.wrap(query.text or "") if query.ids is None else query.ids
        with self._tracer.start_as_current_span("represent query"):
            plain = self._passes.represent(prompt)
            embedding = self._embed(config.query_encoder, plain, query.text or "").numpy()
        started = time.perf_counter()
        near: NearestGroups | Neighbourhood
        with self._tracer.start_as_current_span("lookup"):
            with UnitOfWork.reading(self._sessions) as uow:
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
    """The version that the selection means; None when its end user has no profile."""
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
