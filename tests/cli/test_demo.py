"""What the demo asks of the server; its whole run is an e2e test."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from alignez_core import nano
from cli import demo


class Server:
    """Takes the requests of a client and finishes every job at once."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        if method == "POST":
            self.bodies.append(body or {})
            return {"profile": {"name": "cheerful"}, "version": {"number": 1}, "job": {"id": "j"}}
        return {"quality": "good", "quality_reasons": []}

    def job_events(self, job_id: str) -> list[dict[str, Any]]:
        return [{"status": "succeeded"}]


@pytest.mark.parametrize("method", ["transport", "alignez"])
def test_no_measured_query_can_be_among_the_fit_queries(method: str) -> None:
    server = Server()
    demo._fit(server, nano.PERSONAS[0], method, Console(file=io.StringIO()))  # type: ignore[arg-type]
    assert server.bodies[0]["fit"] == {"method": method, "own_queries": 0}
    assert not {*nano.query_bank()} & {*nano.held_out_queries()}


@pytest.mark.parametrize("name", ["ALIGNEZ_MODEL", "ALIGNEZ_API_MODEL_NAME", "ALIGNEZ_WORKER_MLP_PATH"])
def test_the_demo_runs_the_shipped_model_whatever_the_environment_names(name: str) -> None:
    assert name in demo._MODEL_SETTINGS
