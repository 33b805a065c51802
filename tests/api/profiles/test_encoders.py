"""Profiles whose queries are compared by another model than the language model."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch import Tensor

from alignez_core import embeddings
from alignez_core.engines.fake.engine import FakeEngine
from profiles.uow import SessionFactory
from tests.api.conftest import Tenant, new_tenant
from tests.api.fitting import QUERIES

STUB = {"method": "alignez", "query_encoder": "stub"}
WIDTH = 24  #: unlike the engine's hidden size, so that a mix-up cannot go unnoticed


class StubEncoder:
    """Unit vectors from a hash of the text.

    Attributes:
        seen: every text. gate: encoding waits for it. entered: set while something is encoded. at_once: calls that
        ran at the same moment, at most.
    """

    name = "stub"

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.running = 0
        self.at_once = 0

    def encode(self, queries: Sequence[str]) -> Tensor:
        self.running += 1
        self.at_once = max(self.at_once, self.running)
        self.entered.set()
        assert self.gate.wait(10)
        self.seen += queries
        rows = [
            np.random.default_rng(int.from_bytes(hashlib.sha256(q.encode()).digest()[:8])).standard_normal(WIDTH)
            for q in queries
        ]
        self.running -= 1
        return embeddings.unit_rows(torch.from_numpy(np.array(rows, np.float32)))


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> StubEncoder:
    """Stands in for every encoder that is made, in the fit and in the API."""
    stub = StubEncoder()
    monkeypatch.setattr(embeddings, "make_encoder", lambda name, engine: stub)
    return stub


@pytest.fixture
def tenant(make_app: Any, sessions: SessionFactory, encoder: StubEncoder) -> Iterator[Tenant]:
    """A caller of an app that offers the stub, with the profile `p` fitted with it."""
    engine = FakeEngine()
    with TestClient(make_app(engine, query_encoders=("stub",))) as client:
        tenant = new_tenant(client, sessions, engine)
        tenant.ready("p", queries=QUERIES, fit={**STUB, "neighbors": 3})
        encoder.seen.clear()
        yield tenant


def nearest_texts(tenant: Tenant, applied: dict[str, Any]) -> list[str]:
    """The fit queries that a reply names as neighbours."""
    rows = tenant.get("/v1/profiles/p/versions/1/pairs").json()["data"]
    text = {row["query_id"]: row["query"] for row in rows}
    return [text[i] for i in applied["neighbors"]]


def complete(tenant: Tenant, prompt: Any) -> dict[str, Any]:
    reply = tenant.post("/v1/completions", json={"model": "fake@p", "prompt": prompt})
    assert reply.status_code == 200, reply.text
    return dict(reply.json()["alignez"])


def test_the_profiles_own_encoder_finds_the_neighbours_of_chats_and_of_text_completions(
    tenant: Tenant, encoder: StubEncoder
) -> None:
    asked = QUERIES[5]
    rows = StubEncoder().encode([*QUERIES, asked])
    expected = [QUERIES[int(i)] for i in torch.topk(rows[:-1] @ rows[-1], 3).indices]

    chat = tenant.chat(asked, model="fake@p").json()["alignez"]
    assert nearest_texts(tenant, chat) == expected
    assert nearest_texts(tenant, complete(tenant, asked)) == expected
    assert encoder.seen == [asked, asked]


def test_token_ids_that_the_encoder_cannot_read_take_the_edit_of_all_queries(
    tenant: Tenant, encoder: StubEncoder
) -> None:
    applied = complete(tenant, tenant.engine.tokenize(QUERIES[5]))
    assert (applied["profile"], applied["neighbors"]) == ("p", None)
    assert encoder.seen == []
    plan = tenant.engine.requests[-1].edit
    assert plan is not None
    tenant.ready("all", queries=QUERIES, fit={**STUB, "neighbors": 3, "conditional": False})
    tenant.chat(model="fake@all")
    assert tenant.engine.requests[-1].edit == plan


def test_one_text_at_a_time_and_nobody_else_waits_for_the_encoder(tenant: Tenant, encoder: StubEncoder) -> None:
    tenant.ready("global", fit={"method": "distill"})
    encoder.gate.clear()
    encoder.entered.clear()
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(tenant.chat, f"Question {i}?", model="fake@p") for i in range(2)]
        assert encoder.entered.wait(10)
        try:
            assert tenant.chat(model="fake@global").json()["alignez"]["profile"] == "global"
        finally:
            encoder.gate.set()
        assert [future.result(10).status_code for future in held] == [200, 200]
    assert encoder.at_once == 1
