"""The parts of one API process; built by `create_app`, reached by routes through `api/deps.py`."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from api.auth import Authenticator
from api.database import DatabaseThreads
from api.http.errors import ApiError
from api.http.pace import Pace
from api.metrics import Metrics
from api.settings import ApiSettings
from api.usage import UsageMeter
from profiles.settings import DatabaseSettings
from profiles.uow import SessionFactory
from telemetry.tracing import Tracing

if TYPE_CHECKING:
    from alignez_core.engines.base import Engine
    from api.generation.personalise import Personaliser
    from api.generation.run import Served


@dataclass
class Model:
    """The loaded model and what serves requests with it."""

    engine: Engine
    #: The name that clients use, and that `base_models` knows.
    name: str
    served: Served
    personaliser: Personaliser
    #: Queries for fits that bring none of their own.
    query_bank: tuple[str, ...]


@dataclass
class Services:
    """The parts of an API process. `model` is None until it has loaded, and always in a control-plane process."""

    settings: ApiSettings
    database: DatabaseSettings
    sessions: SessionFactory
    database_threads: DatabaseThreads
    metrics: Metrics
    auth: Authenticator
    pace: Pace
    usage: UsageMeter
    tracing: Tracing = field(default_factory=Tracing)
    model: Model | None = None
    #: Reason why no model is loaded, for `/ready`.
    model_error: str | None = None
    #: Where Prometheus finds this process, when it has a port.
    metrics_port: int | None = None
    #: True if the base model's row exists, so that profiles can name it.
    registered: bool = False
    #: The last check of each part behind `/ready`.
    probes: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    #: Set when the process is to end: long-lived event streams then finish so that clients reconnect elsewhere.
    draining: threading.Event = field(default_factory=threading.Event)

    def require_model(self) -> Model:
        """The model. Raises: ApiError: 404 in a control-plane process, 503 while it is loading."""
        if self.model is not None:
            return self.model
        if not self.settings.serves_generation:
            raise ApiError(
                404,
                "generation_not_served",
                "this process runs with role 'control' and holds no model; ask an API process with role 'inference' "
                "or 'all'",
            )
        raise ApiError(503, "model_loading", self.model_error or "the model is still loading", retry_after_s=5)

    def forget_version(self, version_id: UUID | None) -> None:
        """Drops a version from this process's caches; None: all of them."""
        if self.model is not None:
            self.model.personaliser.forget(version_id)

    @property
    def served_name(self) -> str | None:
        """The served base model's name, once the database knows it: what new profiles are made for by default."""
        return self.model.name if self.model is not None and self.registered else None

    @property
    def offered_judges(self) -> tuple[str, ...]:
        """Judges that fits and evaluations may name here; the workers have what they need."""
        return ("self", "nano", *self.settings.judges)

    def check_choices(self, choices: int | None) -> None:
        """Raises: ApiError: more choices than this deployment allows, naming both."""
        limit = self.settings.max_choices
        if choices is not None and choices > limit:
            raise ApiError(400, "too_many_choices", f"n={choices} is over the limit of {limit}", param="n")
