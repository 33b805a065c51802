"""The REST client against a server that is scripted in memory."""

from __future__ import annotations

import httpx

from cli.client import Client
from cli.config import Connection

EVENTS = (
    'id: 1\nevent: progress\ndata: {"status": "running", "stage": "tuning"}\n\n'
    ": heartbeat\n\n"
    'id: 2\nevent: succeeded\ndata: {"status": "succeeded"}\n\n'
)


def test_a_heartbeat_between_two_events_of_a_job_is_no_event() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text=EVENTS)

    with Client(Connection("http://server", "az_key")) as client:
        client._http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer))
        statuses = [event["status"] for event in client.job_events("0190")]
        client._http.close()
    assert statuses == ["running", "succeeded"]
