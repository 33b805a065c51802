"""Every endpoint, with whatever its OpenAPI file allows and forbids: no 5xx, no stack trace, no unbounded work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode

from alignez_core.engines.fake.engine import FakeEngine
from api.openapi_file import FILE
from profiles.uow import SessionFactory
from tests.api.conftest import AppMaker, Tenant, new_tenant

SCHEMA = schemathesis.openapi.from_path(FILE)
OPERATIONS = [
    (path, method)
    for path, operations in SCHEMA.raw_schema["paths"].items()
    for method in operations
    if not path.endswith("/events")  # a stream that lasts as long as its job; tests of its own
]
#: Generous for a fake engine: what takes longer is work without a bound.
LONGEST_S = 5.0


@pytest.fixture(scope="module")
def fuzzed(sessions: SessionFactory, database: Any) -> Iterator[Tenant]:
    """An administrator with a ready profile `p`, on an app whose unforeseen errors are raised in the test."""
    from api.app import create_app
    from api.settings import ApiSettings

    engine = FakeEngine(context_length=256)
    quota = database.model_copy(update={"max_queued_jobs": 100_000})
    app = create_app(ApiSettings(auth_cache_s=60), engine=engine, session_factory=sessions, database=quota)
    with TestClient(app) as client:
        tenant = new_tenant(client, sessions, engine, role="admin")
        tenant.ready("p")
        tenant.put("/v1/users/anna/profile", json={"profile": "p"})
        yield tenant


def send(tenant: Tenant, case: Case) -> None:
    """One generated request; what comes back must be a proper answer, soon."""
    kwargs = case.as_transport_kwargs(base_url="http://testserver")
    headers = {k: v for k, v in (kwargs.pop("headers", None) or {}).items() if k.lower() != "authorization"}
    url = str(kwargs.pop("url")).removeprefix("http://testserver")
    kwargs = {k: v for k, v in kwargs.items() if k in ("json", "params", "content") and v is not None}
    if url.startswith("/admin/keys/") and str(tenant.caller.key_id) in url:
        return
    started = time.perf_counter()
    try:
        reply = tenant.client.request(
            case.method, url, headers={**headers, **tenant.headers}, follow_redirects=False, **kwargs
        )
    except (UnicodeError, TypeError, ValueError):
        return  # the client cannot even write this down
    seconds = time.perf_counter() - started
    assert reply.status_code < 500 or url.startswith("/ready"), (case.method, url, kwargs, reply.text)
    assert seconds < LONGEST_S, (case.method, url, kwargs)
    assert "Traceback" not in reply.text
    if reply.status_code >= 400 and not url.startswith("/ready"):
        error = reply.json()["error"]
        assert error["message"]
        assert error["request_id"] == reply.headers["x-request-id"]


def fuzz(tenant: Tenant, path: str, method: str, examples: int) -> None:
    operation = SCHEMA[path][method]
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        strategy = operation.as_strategy(mode)

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def run(case: Case) -> None:
            send(tenant, case)

        with contextlib.suppress(Unsatisfiable):  # nothing about this operation can be wrong
            run()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_generated_request_breaks_a_route(fuzzed: Tenant, path: str, method: str) -> None:
    fuzz(fuzzed, path, method, examples=3)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_generated_request_breaks_a_route_deeper(fuzzed: Tenant, path: str, method: str) -> None:
    fuzz(fuzzed, path, method, examples=60)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "fake@p", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
    "/v1/completions": {"model": "fake", "prompt": "x", "max_tokens": 3},
    "/v1/compare": {"prompt": "x", "profiles": [{"name": "p"}], "max_tokens": 3},
    "/v1/profiles": {"name": "p", "persona": {"preferred": "a"}, "fit": {"neighbors": 1}, "queries": ["q"]},
}
FIELDS = {
    "/v1/chat/completions": ["messages", "profile", "temperature", "top_p", "top_k", "max_tokens", "n", "seed", "stop",
                             "stream", "stream_options", "user", "logprobs", "top_logprobs", "model", "tools"],
    "/v1/completions": ["prompt", "profile", "logprobs", "n", "stop", "user", "echo"],
    "/v1/compare": ["prompt", "messages", "profiles", "max_tokens", "seed", "stop", "stream", "top_p"],
    "/v1/profiles": ["name", "persona", "fit", "queries", "pairs", "base_model", "description"],
}  # fmt: skip


@pytest.mark.parametrize("path", list(VALID))
@settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_valid_body_with_one_field_of_any_kind_is_answered_or_refused(
    fuzzed: Tenant, path: str, data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(FIELDS[path]))
    body = {**VALID[path], field: data.draw(JSON)}
    try:
        reply = fuzzed.post(path, json=body)
    except ValueError:  # NaN, which the client refuses to write
        return
    assert reply.status_code < 500, (body, reply.text)


def test_the_fuzzer_would_notice_a_500(make_app: AppMaker, sessions: SessionFactory) -> None:
    engine = FakeEngine(error=RuntimeError("boom"))
    with TestClient(make_app(engine)) as client:
        tenant = new_tenant(client, sessions, engine)
        body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
        case = SCHEMA["/v1/chat/completions"]["post"].Case(body=body, media_type="application/json")
        with pytest.raises(AssertionError):
            send(tenant, case)
