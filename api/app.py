"""The application factory: settings in, an ASGI app out. Nothing is loaded or connected at import."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import structlog
from fastapi import APIRouter, Depends, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from api import health
from api.accounts import routes as account
from api.admin.routes import router as admin
from api.auth import Authenticator
from api.database import DatabaseThreads
from api.docs_page import serve_docs
from api.forgetting import Forgetting
from api.generation.routes.chat import router as chat
from api.generation.routes.compare import router as compare
from api.generation.routes.completions import router as completions
from api.generation.routes.models import router as models
from api.http.errors import install_handlers
from api.http.middleware import RequestContext
from api.http.pace import Pace
from api.http.request_line import refuse_undeclared, refuse_undecodable
from api.http.security import SecurityHeaders
from api.jobs.routes import router as jobs
from api.metrics import Metrics
from api.openapi import DESCRIPTION, TAGS, describe
from api.profiles.alias_routes import router as aliases
from api.profiles.proof_routes import router as proof
from api.profiles.routes import router as profiles
from api.profiles.version_routes import router as versions
from api.services import Services
from api.settings import ApiSettings
from api.usage import UsageMeter
from api.users.routes import router as users
from profiles.errors import ProfilesError
from profiles.settings import DatabaseSettings
from profiles.uow import SessionFactory, make_session_factory
from telemetry.metrics_server import MetricsServer
from telemetry.tracing import Tracing

if TYPE_CHECKING:
    from alignez_core.engines.base import Engine

log = structlog.get_logger("api")

_CONTROL: tuple[APIRouter, ...] = (
    profiles,
    versions,
    proof,
    aliases,
    users,
    jobs,
    account.own,
    account.any_tenant,
    admin,
)
_GENERATION: tuple[APIRouter, ...] = (chat, completions, models, compare)
#: Methods and headers of cross-origin requests; a page sends its key in a header, never the browser by itself.
_CORS_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_CORS_EXPOSED = ("x-request-id", "retry-after", "location", "idempotency-replayed", "allow")
_REGISTER_RETRY_S = 2.0


def create_app(
    settings: ApiSettings | None = None,
    *,
    engine: Engine | None = None,
    session_factory: SessionFactory | None = None,
    database: DatabaseSettings | None = None,
    on_fatal: Callable[[str], None] | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The API.

    Args:
        settings: read from the environment when left out.
        engine: used instead of loading `settings.model`; the caller closes it.
        session_factory: used instead of connecting to `database`; the caller disposes of it.
        on_fatal: called with one line when the model cannot be loaded; by default the process gets SIGTERM.
        tracing: records spans; None: nothing is traced. The caller stops it.
    """
    settings = settings or ApiSettings()
    database = database or DatabaseSettings()
    database = database.model_copy(update={"statement_timeout_s": settings.statement_timeout_s})
    metrics = Metrics()
    tracing = tracing or Tracing()
    owns_sessions = session_factory is None
    sessions = session_factory or make_session_factory(database)
    services = Services(
        settings=settings,
        database=database,
        sessions=sessions,
        database_threads=DatabaseThreads(sessions, database),
        metrics=metrics,
        auth=Authenticator(sessions, metrics, ttl_s=settings.auth_cache_s, size=settings.auth_cache_size),
        pace=Pace(settings.max_sends_per_s),
        usage=UsageMeter(sessions, settings.usage_flush_s),
        tracing=tracing,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        exporter = None
        services.draining.clear()  # an app may be started again, as tests do
        if settings.metrics_port is not None:
            exporter = MetricsServer.start(
                metrics.registry, settings.metrics_host, settings.metrics_port, tls=settings.metrics_tls
            )
            services.metrics_port = exporter.port
            log.info("metrics", port=exporter.port)
        services.usage.start()
        forgetting = Forgetting(database.database_url, services.forget_version, services.auth.forget)
        forgetting.start()
        starting = asyncio.create_task(_start_model(services, engine, on_fatal or _terminate))
        try:
            if engine is not None:
                # Nothing to load, so the first request finds the model there.
                await _until_loaded(services, starting)
            yield
        finally:
            services.draining.set()
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            if services.model is not None and engine is None:
                await run_in_threadpool(services.model.engine.close)
            await run_in_threadpool(services.usage.stop)
            await run_in_threadpool(forgetting.stop)
            if exporter is not None:
                await run_in_threadpool(exporter.stop)
            if owns_sessions:
                sessions.kw["bind"].dispose()

    app = FastAPI(
        title="alignez",
        summary="Personalised answers from one frozen language model",
        description=DESCRIPTION,
        version=_version(),
        openapi_tags=TAGS,
        lifespan=lifespan,
        openapi_url="/openapi.json" if settings.docs else None,
        docs_url=None,  # `serve_docs` has it
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,  # keys are sent in a header, so no web page can make a browser send a caller's
        dependencies=[Depends(refuse_undecodable), Depends(refuse_undeclared)],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.state.services = services
    install_handlers(app)
    app.add_middleware(
        RequestContext,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        tracing=tracing,
        draining=services.draining,
    )
    if settings.cors_origins:
        # Outside of all, so that a browser may read errors too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=_CORS_METHODS,
            allow_headers=["*"],
            expose_headers=_CORS_EXPOSED,
            max_age=600,
        )
    app.add_middleware(SecurityHeaders)  # outermost, for the responses of the other two
    if settings.docs:
        serve_docs(app)
    app.include_router(health.router)
    if settings.serves_control:
        for router in _CONTROL:
            app.include_router(router)
    for router in _GENERATION:  # a control-plane process serves them too, to say where they are
        app.include_router(router)
    describe(app)
    return app


async def _start_model(services: Services, engine: Engine | None, on_fatal: Callable[[str], None]) -> None:
    """Loads the model in a thread while `/health` already answers, then registers it until the database takes it."""
    if not services.settings.serves_generation and engine is None:
        return
    from alignez_core.errors import AlignezError
    from alignez_core.query_bank import default_queries
    from api.loading import assemble, load, register

    def lost(line: str) -> None:
        services.model_error = line
        services.metrics.engine_ready.set(0)
        on_fatal(line)

    try:
        if engine is not None:
            loaded, bank = engine, default_queries()
        else:
            loaded, bank = await run_in_threadpool(load, services.settings, lost)
    except (AlignezError, OSError) as error:
        services.model_error = f"the model could not be loaded: {error}"
        on_fatal(services.model_error)
        return
    services.model = assemble(services, loaded, bank)
    services.metrics.engine_ready.set(1)
    log.info("model_loaded", model=services.model.name, fingerprint=loaded.info.fingerprint)
    while not services.registered:
        try:
            await run_in_threadpool(register, services)
            services.registered = True
        except ProfilesError as error:
            log.warning("model_not_registered", reason=str(error))
            await asyncio.sleep(_REGISTER_RETRY_S)


async def _until_loaded(services: Services, starting: asyncio.Task[None]) -> None:
    """Waits for an injected engine to be registered, but not for a database that is away."""
    await asyncio.wait({starting}, timeout=5.0)
    if starting.done():
        starting.result()


def _terminate(line: str) -> None:
    log.critical("fatal", reason=line)
    os.kill(os.getpid(), signal.SIGTERM)


def _version() -> str:
    try:
        return version("alignez")
    except PackageNotFoundError:
        return "0"
