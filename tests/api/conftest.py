"""The real app on a fake engine and a real Postgres, and tenants to call it with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import UUID

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient

from alignez_core.engines.base import Engine
from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.fit import FittedProfile
from api.app import create_app
from api.server import Server, server_config
from api.settings import ApiSettings
from profiles.service import Caller, KeySpec, create_key, create_tenant
from profiles.settings import DatabaseSettings
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.api.fitting import Quality, finish_fit
from tests.conftest import empty_tables

_NUMBERS = count()


@dataclass(frozen=True)
class Tenant:
    """A customer with a key, and calls in their name."""

    caller: Caller
    secret: str
    client: TestClient
    sessions: SessionFactory
    engine: FakeEngine

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """`tenant.get(path, …)` and the other methods."""
        if method not in ("get", "post", "put", "patch", "delete"):
            raise AttributeError(method)

        def call(path: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
            return self.client.request(method.upper(), path, headers={**self.headers, **(headers or {})}, **more)

        return call

    def pending(self, name: str, **spec: Any) -> dict[str, Any]:
        """A profile whose fit is queued; the reply to its creation."""
        body = {"name": name, "persona": {"preferred": "cheerful", "dispreferred": "gloomy"}, **spec}
        reply = self.post("/v1/profiles", json=body)
        assert reply.status_code == 202, reply.text
        return dict(reply.json())

    def ready(self, name: str, quality: Quality = "good", **spec: Any) -> FittedProfile:
        """A profile whose first version is ready."""
        return finish_fit(self.sessions, self.engine, UUID(self.pending(name, **spec)["version"]["id"]), quality)

    def next_version(self, name: str, quality: Quality = "good", **spec: Any) -> FittedProfile:
        """One more ready version."""
        reply = self.post(f"/v1/profiles/{name}/versions", json=spec)
        assert reply.status_code == 202, reply.text
        return finish_fit(self.sessions, self.engine, UUID(reply.json()["version"]["id"]), quality)

    def chat(
        self,
        content: str = "What is the sea?",
        model: str = "fake",
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> Any:
        """One chat completion."""
        body = {"model": model, "messages": [{"role": "user", "content": content}], **more}
        return self.post("/v1/chat/completions", json=body, headers=headers)


@pytest.fixture(scope="package", autouse=True)
def _plain_logs() -> Iterator[None]:
    # structlog's own default formats tracebacks with every local variable, which takes seconds.
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()])
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="package")
def sessions(real_sessions: SessionFactory, owner_sessions: SessionFactory) -> Iterator[SessionFactory]:
    """Sessions that commit; the package leaves empty tables."""
    yield real_sessions
    empty_tables(owner_sessions)


@pytest.fixture(scope="package")
def database(postgres_url: str) -> DatabaseSettings:
    # Port 9 (discard) is nobody's broker: fits are queued in the database, whatever the broker does.
    return DatabaseSettings(database_url=postgres_url, broker_url="redis://127.0.0.1:9/0", max_queued_jobs=12)


@pytest.fixture(scope="package")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="package")
def app(engine: FakeEngine, sessions: SessionFactory, database: DatabaseSettings) -> FastAPI:
    # Usage is flushed when a test wants it.
    settings = ApiSettings(job_poll_s=0.02, ready_timeout_s=1.0, usage_flush_s=3600)
    return create_app(settings, engine=engine, session_factory=sessions, database=database)


@pytest.fixture(scope="package")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def new_tenant(
    client: TestClient, sessions: SessionFactory, engine: FakeEngine, role: str = "member", name: str | None = None
) -> Tenant:
    """A tenant nobody else has, with one key."""
    with UnitOfWork.open(sessions, PLATFORM) as uow:
        row = create_tenant(uow, name or f"tenant {next(_NUMBERS)} {time.time_ns()}")
        key, secret = create_key(uow, row.id, KeySpec(role, "test"))
        caller = Caller(key.id, row.id, key.role)
    return Tenant(caller, secret, client, sessions, engine)


@pytest.fixture
def tenant(client: TestClient, sessions: SessionFactory, engine: FakeEngine) -> Tenant:
    """Whoever calls."""
    return new_tenant(client, sessions, engine)


@pytest.fixture
def stranger(client: TestClient, sessions: SessionFactory, engine: FakeEngine) -> Tenant:
    """Somebody else, who must see nothing of `tenant`."""
    return new_tenant(client, sessions, engine)


@pytest.fixture
def operator(client: TestClient, sessions: SessionFactory, engine: FakeEngine) -> Tenant:
    return new_tenant(client, sessions, engine, role="operator")


@contextmanager
def serving(app: FastAPI) -> Iterator[tuple[str, Server]]:
    """The real server in a thread, on a free port; yields its URL and the server."""
    services = app.state.services
    server = Server(server_config(app, services.settings.model_copy(update={"port": 0})), services)
    thread = threading.Thread(target=server.run, name="uvicorn", daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline and thread.is_alive():
        time.sleep(0.01)
    assert server.started, "uvicorn did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive(), "uvicorn did not stop"


AppMaker = Callable[..., FastAPI]


@pytest.fixture
def make_app(sessions: SessionFactory, database: DatabaseSettings) -> AppMaker:
    """An app of one's own: `make_app(engine, role="inference", …)`."""

    def make(engine: Engine | None = None, **settings: Any) -> FastAPI:
        own = settings.pop("sessions", sessions)
        facts = settings.pop("database", database)
        return create_app(ApiSettings(**settings), engine=engine, session_factory=own, database=facts)

    return make
