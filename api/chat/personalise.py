"""From a selection to the edit that a request runs with.

Three steps, each as short as it can be: one statement that says which version it is, the query's embedding (a forward
pass, no connection held), and for sample-conditional profiles one statement that reads the nearest fit queries.
A version never changes, so everything made from it alone is kept.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import structlog
from opentelemetry.trace import NoOpTracer, Tracer
from starlette.concurrency import run_in_threadpool

from api.chat.queries import SharedPasses
from api.chat.selection import Selection
from api.metrics import Metrics
from profiles.service import (
    ActiveProfile,
    Caller,
    ResolvedVersion,
    load_active,
    nearest_representations,
    pick_version,
    resolve_for_user,
)
from profiles.uow import SessionFactory, UnitOfWork

if TYPE_CHECKING:  # torch stays out of processes without a model
    from torch import Tensor

    from alignez_core.editing import EditPlan
    from alignez_core.embeddings import QueryEncoder
    from alignez_core.engines.base import Engine
    from alignez_core.fit_config import FitConfig

log = structlog.get_logger("api")


@dataclass(frozen=True)
class Query:
    """What a request is looked up with. Both are kept, because encoders beside the language model read text only.

    Args:
        text: a chat's last question, or a text completion's prompt; None when the prompt came as token ids.
        ids: a text completion's prompt, which the model reads as it stands; None: the text, wrapped as in the fit.
    """

    text: str | None
    ids: Sequence[int] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look up."""
        return not (self.text if self.ids is None else self.ids)


@dataclass(frozen=True)
class Personalisation:
    """What is applied to one answer, and what its reply says of it.

    `edit_ratio` is how far the edit moves the model at the query's last token: ‖y − x‖ / ‖x‖, mean over the edited
    layers, x the MLP output for the bare, wrapped query. It needs a forward pass that only sample-conditional requests
    make anyway; otherwise it is None.
    """

    kind: str = "none"
    plan: EditPlan | None = None
    profile: str | None = None
    profile_id: UUID | None = None
    version: int | None = None
    sha256: str | None = None
    neighbors: tuple[str, ...] | None = None
    edit_ratio: float | None = None

    def report(self) -> dict[str, Any]:
        """The `alignez` object of a reply; all null for the bare base model."""
        return {
            "profile": self.profile,
            "version": self.version,
            "sha256": self.sha256,
            "neighbors": None if self.neighbors is None else list(self.neighbors),
            "edit_ratio": None if self.edit_ratio is None else round(self.edit_ratio, 6),
        }


BARE = Personalisation()


async def personal_of(
    personaliser: Personaliser, caller: Caller, selection: Selection, query: Query
) -> Personalisation:
    """The personalisation of a selection; the bare model costs nothing, anything else goes to a thread."""
    if selection.is_bare:
        return BARE
    return await run_in_threadpool(personaliser.personalise, caller, selection, query)


@dataclass(frozen=True, eq=False)
class _Loaded:
    active: ActiveProfile
    config: FitConfig


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


_K = TypeVar("_K")
_V = TypeVar("_V")


class Personaliser:
    """Compiles edits for one engine. Safe to call from any thread."""

    def __init__(
        self,
        engine: Engine,
        sessions: SessionFactory,
        metrics: Metrics,
        cache_size: int,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer or NoOpTracer()
        self._engine = engine
        self._sessions = sessions
        self._metrics = metrics
        self._size = cache_size
        self._lock = threading.Lock()
        self._versions: OrderedDict[UUID, _Loaded] = OrderedDict()
        self._plans: OrderedDict[tuple[UUID, float], EditPlan] = OrderedDict()
        self._passes = SharedPasses(engine)
        self._encoders: dict[str, _Encoder] = {}

    def personalise(self, caller: Caller, selection: Selection, query: Query) -> Personalisation:
        """The edit for one request; blocks for the database and, sample-conditional, for one forward pass.

        Raises: NotFound: profile, alias or version, also a foreign one. VersionNotReady.
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
            loaded = self._recall(picked.version_id) or self._load(uow, picked.version_id)
        made = self._compile(picked, loaded, selection.strength, query)
        self._metrics.personalise_seconds.observe(time.perf_counter() - started)
        return made

    def _compile(
        self, picked: ResolvedVersion, loaded: _Loaded, strength: float | None, query: Query
    ) -> Personalisation:
        from alignez_core.embeddings import LM_ENCODER
        from alignez_core.errors import DegenerateEmbeddings

        # Token ids say nothing to an encoder other than the model; then the directions of all rows together serve.
        readable = query.text is not None or loaded.config.query_encoder == LM_ENCODER
        if loaded.config.conditional and readable and not query.is_empty:
            try:
                return self._conditional(picked, loaded, strength, query)
            except DegenerateEmbeddings as error:
                # These few neighbours define no direction; all rows together did, when the version was made.
                log.warning("conditional_fallback", version=str(picked.version_id), reason=str(error))
        return Personalisation(
            "global",
            self._global(picked.version_id, loaded, strength),
            picked.profile_name,
            picked.profile_id,
            picked.number,
            picked.sha256,
        )

    def _conditional(
        self, picked: ResolvedVersion, loaded: _Loaded, strength: float | None, query: Query
    ) -> Personalisation:
        from alignez_core.request_edit import conditional_plan

        config, active = loaded.config, loaded.active
        prompt = self._engine.prompt_format.wrap(query.text or "") if query.ids is None else query.ids
        with self._tracer.start_as_current_span("represent query"):
            plain = self._passes.represent(prompt)
            embedding = self._embed(config.query_encoder, plain, query.text or "")
        started = time.perf_counter()
        needed = ("help", "plain") if config.method == "transport" else ("help", "harm")
        with self._tracer.start_as_current_span("lookup"):
            with UnitOfWork.reading(self._sessions) as uow:
                near = nearest_representations(uow, picked.version_id, embedding.numpy(), config.neighbors, needed)
            plan = conditional_plan(
                config,
                active.layers,
                _required(_tensor(near.help)),
                _tensor(near.harm),
                _tensor(near.plain),
                strength=strength,
            )
        self._metrics.lookup_seconds.observe(time.perf_counter() - started)
        ratio = edit_ratio(plan, plain[0])
        if ratio is not None:
            self._metrics.edit_ratio.observe(ratio)
        return Personalisation(
            "conditional",
            plan,
            picked.profile_name,
            picked.profile_id,
            picked.number,
            picked.sha256,
            tuple(str(i) for i in near.query_ids),
            ratio,
        )

    def _embed(self, name: str, plain: Tensor, text: str) -> Tensor:
        from alignez_core.embeddings import LM_ENCODER, from_representation

        if name == LM_ENCODER:
            return from_representation(plain)[0]
        with self._lock:
            encoder = self._encoders.setdefault(name, _Encoder(name, self._engine))
        return encoder.encode(text)

    def _global(self, version_id: UUID, loaded: _Loaded, strength: float | None) -> EditPlan:
        from alignez_core.request_edit import global_plan

        key = (version_id, loaded.config.strength if strength is None else strength)
        with self._lock:
            plan = self._plans.get(key)
            if plan is not None:
                self._plans.move_to_end(key)
        self._metrics.plan_cache.labels("miss" if plan is None else "hit").inc()
        if plan is None:
            active = loaded.active
            plan = global_plan(
                loaded.config,
                active.layers,
                theta_help=_tensor(active.theta_help),
                theta_harm=_tensor(active.theta_harm),
                theta=_tensor(active.theta),
                tau=_tensor(active.tau),
                strength=strength,
            )
            self._keep(self._plans, key, plan)
        return plan

    def _recall(self, version_id: UUID) -> _Loaded | None:
        with self._lock:
            found = self._versions.get(version_id)
            if found is not None:
                self._versions.move_to_end(version_id)
            return found

    def _load(self, uow: UnitOfWork, version_id: UUID) -> _Loaded:
        from alignez_core.errors import ModelMismatch
        from alignez_core.fit_config import FitConfig

        active = load_active(uow, version_id)
        served = self._engine.info.fingerprint
        if active.fingerprint != served:
            raise ModelMismatch(f"profile {active.profile_name!r} version {active.number}", served, active.fingerprint)
        loaded = _Loaded(active, FitConfig.from_dict(active.config))
        self._keep(self._versions, version_id, loaded)
        return loaded

    def _keep(self, cache: OrderedDict[_K, _V], key: _K, value: _V) -> None:
        with self._lock:
            cache[key] = value
            cache.move_to_end(key)
            while len(cache) > self._size:
                cache.popitem(last=False)


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


def _pick(uow: UnitOfWork, caller: Caller, selection: Selection) -> ResolvedVersion | None:
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


def _tensor(array: Any) -> Tensor | None:
    import torch

    if array is None:
        return None
    # Without a copy where that is safe; torch must not wrap what is read-only.
    return torch.from_numpy(array) if array.flags.writeable else torch.tensor(array)


def _required(value: Tensor | None) -> Tensor:
    from profiles.errors import NotFound

    if value is None:
        raise NotFound("representations", "of this version")
    return value
