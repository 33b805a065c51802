"""The main job with vLLM under it: fits, users with profiles of every kind, and one without, in one batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
import torch
from fastapi.testclient import TestClient

from alignez_core.engines.base import Engine
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.models import persona_nano
from alignez_core.models.persona_nano.style import style_of
from api.app import create_app
from api.settings import ApiSettings
from profiles.service import KeySpec, create_key, create_tenant
from profiles.settings import DatabaseSettings
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.worker.conftest import OPTIONS, loaded
from worker.runner import JobRunner, only_self

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    from alignez_core.engines.vllm.engine import VLLMEngine

    with VLLMEngine.load(persona_nano.MODEL_DIR, compile=False, max_running=16) as loaded:
        yield loaded


def test_representations_of_the_shipped_model_are_those_of_transformers(engine: Any) -> None:
    texts = [engine.prompt_format.wrap(query) for query in persona_nano.held_out_queries()[:8]]
    with TransformersEngine.load(persona_nano.MODEL_DIR) as reference:
        assert engine.info.fingerprint == reference.info.fingerprint
        torch.testing.assert_close(engine.represent(texts), reference.represent(texts), atol=1e-3, rtol=1e-3)


#: End user → the persona's sides, and the method.
USERS = {
    "ada": ("cheerful", "gloomy", "alignez"),
    "ben": ("formal", "slang", "alignez"),
    "cora": ("cheerful", "gloomy", "prompt"),
    "dan": ("cheerful", "gloomy", "distill"),
}
#: A proof that takes no time; assignments name the version, whatever its verdict.
SMALL = {"tune_queries": 0, "held_out_queries": 4, "answer_tokens": 24}
OF_METHOD: dict[str, dict[str, Any]] = {
    "alignez": {"neighbors": 10},
    "distill": {"contrast": 1, "answers": 16},
    "prompt": {},
}


def test_users_with_profiles_of_every_kind_share_a_batch(
    engine: Any, committed: SessionFactory, postgres_url: str
) -> None:
    """Edits made per request, a prefix, an edit of rank 4 that another engine fitted, and nothing."""
    with UnitOfWork.open(committed, PLATFORM) as uow:
        _, key = create_key(uow, create_tenant(uow, "acme").id, KeySpec("member", "test"))
    database = DatabaseSettings(database_url=postgres_url, broker_url="redis://127.0.0.1:9/0")
    app = create_app(ApiSettings(role="all", port=0), engine=engine, session_factory=committed, database=database)
    with (
        TestClient(app, headers={"Authorization": f"Bearer {key}"}) as client,
        TransformersEngine.load(persona_nano.MODEL_DIR) as walking,
    ):
        for user, (liked, disliked, method) in USERS.items():
            make_profile(client, committed, walking if method == "distill" else engine, user, liked, disliked, method)

        def ask(question: tuple[str, str]) -> tuple[str, str | None, dict[str, Any]]:
            user, text = question
            body = {"model": "base", "messages": [{"role": "user", "content": text}], "seed": 1, "temperature": 0.8}
            reply = client.post(f"/v1/users/{user}/chat/completions", json=body)
            assert reply.status_code == 200, reply.text
            answer = reply.json()
            return user, style_of(answer["choices"][0]["message"]["content"]), answer["alignez"]

        asked = [(user, query) for query in persona_nano.held_out_queries()[:10] for user in (*USERS, "carl")]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, asked))
    count = Counter((user, style) for user, style, _ in answers)
    for user in ("cora", "dan"):
        assert count[user, "cheerful"] >= 6, count
    assert count["carl", "cheerful"] + count["carl", "formal"] <= 2
    applied = {user: found for user, _, found in answers}
    # The paper's edit hardly shows in what persona-nano says; that it is made anew for each query can be seen.
    for user in ("ada", "ben"):
        assert len(applied[user]["neighbors"]) == 10
        assert applied[user]["edit_ratio"] > 0
        assert len({tuple(found["neighbors"]) for who, _, found in answers if who == user}) > 1
    assert applied["cora"]["prefix_tokens"] > 0
    assert applied["dan"]["sha256"]
    assert applied["dan"]["edit_ratio"] is None
    assert applied["carl"]["profile"] is None


def make_profile(
    client: TestClient, sessions: SessionFactory, engine: Engine, user: str, liked: str, disliked: str, method: str
) -> None:
    """A profile that a worker on this engine has fitted, assigned to its user."""
    queries = list(persona_nano.query_bank()[:24])
    fit = {"method": method, **OF_METHOD[method], **SMALL}
    body = {"name": user, "persona": {"preferred": liked, "dispreferred": disliked}, "queries": queries, "fit": fit}
    made = client.post("/v1/profiles", json=body)
    assert made.status_code == 202, made.text
    # As a worker does, but in this process: one start of vLLM serves and fits.
    runner = JobRunner(
        sessions, loaded(engine, persona_nano.query_bank()), OPTIONS, lambda: False, None, None, only_self
    )
    assert runner.run(UUID(made.json()["job"]["id"])) == "succeeded"
    assert client.put(f"/v1/users/{user}/profile", json={"profile": user, "version": 1}).status_code == 200
