"""Every endpoint, with whatever its OpenAPI file allows and forbids: no 5xx, no stack trace, no unbounded work."""

from __future__ import annotations

import json
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
#: Nothing about them can be wrong.
WITHOUT_INPUT = ("/health", "/ready")
#: Generous for a fake engine: what takes longer is work without a bound.
LONGEST_S = 5.0


@pytest.fixture(scope="module")
def fuzzed(sessions: SessionFactory, database: Any) -> Iterator[Tenant]:
    """An administrator with a ready profile `p`, on an app of its own."""
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


def send(tenant: Tenant, case: Case[Any]) -> bool:
    """Sends one generated request, whose answer must be proper and soon.

    Returns: False where nothing was sent: no client can write the request down, or it would revoke the test's own key.
    """
    kwargs = case.as_transport_kwargs(base_url="http://testserver")
    headers = {k: v for k, v in (kwargs["headers"] or {}).items() if k.lower() != "authorization"}
    url = str(kwargs["url"]).removeprefix("http://testserver")
    if url.startswith("/admin/keys/") and str(tenant.caller.key_id) in url:
        return False
    try:
        request = tenant.client.build_request(
            case.method, url, headers={**headers, **tenant.headers}, params=kwargs.get("params") or None,
            json=kwargs.get("json"), content=kwargs.get("data"),
        )  # fmt: skip
    except (UnicodeError, TypeError, ValueError):
        return False
    started = time.perf_counter()
    reply = tenant.client.send(request, follow_redirects=False)
    seconds = time.perf_counter() - started
    sent = (case.method, url, request.content)
    assert reply.status_code < 500 or url.startswith("/ready"), (sent, reply.text)
    assert seconds < LONGEST_S, sent
    assert "Traceback" not in reply.text
    if reply.status_code >= 400 and not url.startswith("/ready"):
        error = reply.json()["error"]
        assert error["message"]
        assert error["request_id"] == reply.headers["x-request-id"]
    return True


def fuzz(tenant: Tenant, path: str, method: str, examples: int) -> None:
    operation = SCHEMA[path][method]
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        made = sent = 0

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(mode))
        def run(case: Case[Any]) -> None:
            nonlocal made, sent
            made += 1
            sent += send(tenant, case)

        if mode is GenerationMode.NEGATIVE and path in WITHOUT_INPUT:
            with pytest.raises(Unsatisfiable):
                run()
            continue
        run()
        assert sent > made / 2, f"{sent} of {made} requests were sent ({mode})"


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
def test_a_valid_body_with_one_field_of_any_kind_is_answered_or_refused(fuzzed: Tenant, path: str) -> None:
    sent = 0

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(field=st.sampled_from(FIELDS[path]), value=JSON)
    def run(field: str, value: object) -> None:
        nonlocal sent
        # As Python writes it, numbers that JSON does not have included; httpx refuses those.
        body = json.dumps({**VALID[path], field: value})
        reply = fuzzed.post(path, content=body, headers={"content-type": "application/json"})
        assert reply.status_code < 500, (body, reply.text)
        sent += 1

    run()
    assert sent >= 25


def test_nothing_is_left_out_of_the_fuzzing() -> None:
    assert len(OPERATIONS) > 40
    assert set(VALID) == set(FIELDS)


def test_the_fuzzer_would_notice_a_500(make_app: AppMaker, sessions: SessionFactory) -> None:
    engine = FakeEngine(error=RuntimeError("boom"))
    with TestClient(make_app(engine)) as client:
        tenant = new_tenant(client, sessions, engine)
        body: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
        case = SCHEMA["/v1/chat/completions"]["post"].Case(body=body, media_type="application/json")
        with pytest.raises(AssertionError):
            send(tenant, case)


def test_the_fuzzer_sends_bodies_that_are_no_json(fuzzed: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemathesis gives some as bytes; without them the request would be another."""
    seen: list[bytes] = []
    client = fuzzed.client
    real = client.send

    def noting(request: Any, **options: Any) -> Any:
        seen.append(request.content)
        return real(request, **options)

    monkeypatch.setattr(client, "send", noting)
    assert send(fuzzed, SCHEMA["/v1/profiles"]["post"].Case(body=b"{", media_type="application/json"))
    assert seen == [b"{"]
