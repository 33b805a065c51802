"""The main job with vLLM under it: a fit, two users with profiles of their own, and one without, in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from alignez_core import nano
from alignez_core.engines.transformers_engine import TransformersEngine
from alignez_core.nano.style import style_of
from api.app import create_app
from api.settings import ApiSettings
from profiles.service import Caller, create_key, create_tenant
from profiles.settings import DatabaseSettings
from profiles.uow import SessionFactory, UnitOfWork
from tests.api.fitting import finish_fit

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    from alignez_core.engines.vllm.engine import VLLMEngine

    with VLLMEngine.load(nano.MODEL_DIR, compile=False, max_running=16) as loaded:
        yield loaded


def test_representations_of_the_shipped_model_are_those_of_transformers(engine: Any) -> None:
    texts = [engine.prompt_format.wrap(query) for query in nano.held_out_queries()[:8]]
    with TransformersEngine.load(nano.MODEL_DIR) as reference:
        assert engine.info.fingerprint == reference.info.fingerprint
        torch.testing.assert_close(engine.represent(texts), reference.represent(texts), atol=1e-3, rtol=1e-3)


def test_users_with_their_own_profiles_share_a_batch(engine: Any, committed: SessionFactory, postgres_url: str) -> None:
    with UnitOfWork.open(committed) as uow:
        tenant = create_tenant(uow, "acme")
        row, key = create_key(uow, tenant.id, "member", "test")
        Caller(row.id, tenant.id, row.role)
    database = DatabaseSettings(database_url=postgres_url, broker_url="redis://127.0.0.1:9/0")
    app = create_app(ApiSettings(role="all", port=0), engine=engine, session_factory=committed, database=database)
    queries = list(nano.query_bank()[:32])
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as client:
        for user, (liked, disliked) in {"ada": ("cheerful", "gloomy"), "ben": ("formal", "slang")}.items():
            body = {"name": liked, "persona": {"preferred": liked, "dispreferred": disliked}, "queries": queries}
            made = client.post("/v1/profiles", json=body | {"fit": {"neighbors": 10}})
            assert made.status_code == 202, made.text
            fitted = finish_fit(committed, engine, made.json()["version"]["id"])
            assert fitted.quality == "good", fitted.quality_reasons
            assert client.put(f"/v1/users/{user}/profile", json={"profile": liked}).status_code == 200

        def ask(question: tuple[str, str]) -> tuple[str, str]:
            user, text = question
            body = {"model": "base", "messages": [{"role": "user", "content": text}], "seed": 1, "temperature": 0.8}
            reply = client.post(f"/v1/users/{user}/chat/completions", json=body)
            assert reply.status_code == 200, reply.text
            return user, style_of(reply.json()["choices"][0]["message"]["content"])

        asked = [(user, query) for query in nano.held_out_queries()[:10] for user in ("ada", "ben", "carl")]
        with ThreadPoolExecutor(8) as pool:
            styles = list(pool.map(ask, asked))
    for user, style in (("ada", "cheerful"), ("ben", "formal")):
        assert sum(found == style for who, found in styles if who == user) >= 6
    assert sum(found in ("cheerful", "formal") for who, found in styles if who == "carl") <= 2
