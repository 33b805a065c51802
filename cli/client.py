"""The REST API as the client commands use it. Every failure becomes one line that says what to do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from httpx_sse import SSEError, connect_sse

from cli.config import Connection
from cli.errors import CliError

_RECONNECT_S = 1.0
_FINISHED = ("succeeded", "failed", "cancelled")


class ApiError(CliError):
    """The server refused: its own message, with what to do where we know it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Client:
    """One connection to one server.

    Args:
        connection: address and key.
        patience_s: how long a watch outlives a server that is away.
    """

    def __init__(self, connection: Connection, patience_s: float = 60.0) -> None:
        self._connection = connection
        self._patience_s = patience_s
        self._http = httpx.Client(
            base_url=connection.url,
            headers={"Authorization": f"Bearer {connection.key}"},
            timeout=httpx.Timeout(60.0, connect=10.0),
            trust_env=not _is_local(connection.url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: object = None, **query: str | int | None) -> dict[str, Any]:
        """One request; returns the JSON object of the answer (empty for an empty answer).

        Raises: ApiError: the server refused. CliError: nothing answers.
        """
        params = {name: value for name, value in query.items() if value is not None}
        try:
            response = self._http.request(method, path, json=body, params=params)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        _raise_for(response)
        if not response.content:
            return {}
        try:
            content: dict[str, Any] = response.json()
        except ValueError:
            raise CliError(f"{self._connection.url} does not answer as an alignez server does: check --url") from None
        return content

    def page(self, path: str, **query: str | int | None) -> str:
        """A page as text. Raises: ApiError: the server refused. CliError: nothing answers."""
        params = {name: value for name, value in query.items() if value is not None}
        try:
            response = self._http.get(path, params=params)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        _raise_for(response)
        return response.text

    def all(self, path: str, **query: str | int | None) -> list[dict[str, Any]]:
        """Every row of a cursor-paged list."""
        rows: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = self.call("GET", path, cursor=cursor, limit=100, **query)
            rows += page["data"]
            cursor = page["next"]
            if cursor is None:
                return rows

    def base_model(self) -> str:
        """Name of the served base model.

        Raises: CliError: the server holds none.
        """
        models = self.call("GET", "/v1/models")["data"]
        names = [str(model["id"]) for model in models if model.get("parent") is None]
        if not names:
            raise CliError(f"{self._connection.url} serves no model: ask an API process with role all or inference")
        return names[0]

    def job_events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job's events until it has ended; reconnects where it was when the connection or the server is lost.

        Yields: objects with `status`, `stage`, `progress`; the last one has a final status.
        """
        last_id = ""
        gone_since: float | None = None
        while True:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            try:
                with connect_sse(
                    self._http, "GET", f"{job_path(job_id)}/events", headers=headers, timeout=httpx.Timeout(60.0)
                ) as source:
                    if source.response.status_code != 200:
                        source.response.read()
                        _raise_for(source.response)
                    for event in source.iter_sse():
                        gone_since = None
                        last_id = event.id or last_id
                        if event.event == "error":
                            break
                        if not event.data:
                            continue  # a heartbeat: httpx-sse makes an event of a comment once an id was seen
                        content: dict[str, Any] = json.loads(event.data)
                        yield content
                        if content.get("status") in _FINISHED:
                            return
            except (httpx.HTTPError, SSEError) as error:
                gone_since = gone_since or time.monotonic()
                if time.monotonic() - gone_since > self._patience_s:
                    raise self._unreachable(error) from None
            except ApiError as error:
                gone_since = gone_since or time.monotonic()
                if error.status != 503 or time.monotonic() - gone_since > self._patience_s:
                    raise
            time.sleep(_RECONNECT_S)

    def chat(self, body: Mapping[str, Any], user: str | None = None) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed chat completion.

        Args:
            body: as OpenAI has it, without `stream`.
            user: an end user whose assigned profile is to be used.
        """
        path = f"/v1/users/{quote(user, safe='')}/chat/completions" if user else "/v1/chat/completions"
        try:
            with connect_sse(self._http, "POST", path, json={**body, "stream": True}) as source:
                if source.response.status_code != 200:
                    source.response.read()
                    _raise_for(source.response)
                for event in source.iter_sse():
                    if event.data == "[DONE]":
                        return
                    if not event.data:
                        continue
                    chunk: dict[str, Any] = json.loads(event.data)
                    if "error" in chunk:
                        raise ApiError(500, str(chunk["error"].get("code")), str(chunk["error"].get("message")))
                    yield chunk
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> CliError:
        url = self._connection.url
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return CliError(f"nothing answers at {url}: start the stack with `alignez up`, or name a server with --url")
        return CliError(f"the connection to {url} broke ({error or type(error).__name__}): try again")


def job_path(job_id: str) -> str:
    """Where a job is found; the id may be anything that somebody typed."""
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _is_local(url: str) -> bool:
    """A proxy of the environment must not stand between us and this machine."""
    return httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")


def _raise_for(response: httpx.Response) -> None:
    if response.is_success:
        return
    code, message = "http_error", f"the server answered {response.status_code}"
    try:
        error = response.json()["error"]
        code, message = str(error["code"]), str(error["message"])
        if field := (error.get("details") or {}).get("field"):
            message = message if str(field) in message else f"{field}: {message}"
    except (ValueError, KeyError, TypeError):
        pass
    advice = {
        401: "the key was refused: pass --key or set ALIGNEZ_KEY (`alignez keys create` makes one)",
        403: f"{message}; this needs an admin key",
        503: f"{message}; try again in {response.headers.get('retry-after', 'a few')} s",
    }
    raise ApiError(response.status_code, code, advice.get(response.status_code, message))
