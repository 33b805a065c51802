"""A client of the REST API for the commands. Every failure becomes one line that says what to do."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Generator, Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent, SSEError, connect_sse

from cli.config import Connection
from cli.errors import CliError, usage_error

_TIMEOUT_S = 60.0
_RECONNECT_S = 1.0
_NAMES_LIMIT = 200
_SHOWN_ERRORS = 5
_FINISHED = ("succeeded", "failed", "cancelled")


class ApiError(CliError):
    """A refusal by the server: its own message, with advice where there is any.

    Args:
        status: HTTP status.
        message: one line.
        error: the server's error object.
    """

    def __init__(self, status: int, message: str, error: Mapping[str, Any]) -> None:
        super().__init__(message, code=str(error.get("code") or "http_error"), details=error.get("details"))
        self.status = status
        self.request_id = error.get("request_id")


class Client:
    """One connection to one server.

    Args:
        connection: address and key.
        patience_s: seconds for which `job_events` retries an unreachable server.
        transport: replaces the network in tests.

    Raises: CliError: the address is malformed.
    """

    def __init__(
        self, connection: Connection, patience_s: float = 60.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._connection = connection
        self._patience_s = patience_s
        try:
            local = httpx.URL(connection.url).host in ("127.0.0.1", "localhost", "::1")
        except httpx.InvalidURL as error:
            raise CliError(f"--url {connection.url!r} is not an address: {error}") from None
        self._http = httpx.Client(
            base_url=connection.url,
            headers={"Authorization": f"Bearer {connection.key}"},
            timeout=httpx.Timeout(_TIMEOUT_S, connect=10.0),
            trust_env=not local,  # no proxy of the environment for a server on this machine
            verify=httpx.create_ssl_context(),  # but always its SSL_CERT_FILE
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: object = None, **query: str | int | None) -> dict[str, Any]:
        """Sends one request; returns the JSON object of the answer (empty for an empty answer).

        Raises: ApiError: the server refused. CliError: no server answers.
        """
        response = self._request(method, path, body, query)
        if not response.content:
            return {}
        try:
            content = response.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise self._not_alignez()
        return content

    def page(self, path: str, **query: str | int | None) -> str:
        """The text of a page. Raises: as `call`."""
        return self._request("GET", path, None, query).text

    def rows(self, path: str, limit: int | None = None, **query: str | int | None) -> Iterator[dict[str, Any]]:
        """The rows of a cursor-paged list, `limit` at most. A page is requested when its rows are read.

        Raises: as `call`.
        """
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            page = self.call("GET", path, cursor=cursor, limit=100 if left is None else min(left, 100), **query)
            if not isinstance(page.get("data"), list):
                raise self._not_alignez()
            yield from page["data"]
            left = None if left is None else left - len(page["data"])
            cursor = page.get("next")
            if cursor is None:
                return

    def all(self, path: str, limit: int | None = None, **query: str | int | None) -> list[dict[str, Any]]:
        """`rows` as a list."""
        return list(self.rows(path, limit, **query))

    def base_model(self) -> str:
        """Name of the served base model.

        Raises: CliError: the server serves none.
        """
        models = self.call("GET", "/v1/models").get("data") or []
        names = [str(model["id"]) for model in models if model.get("parent") is None]
        if not names:
            raise CliError(f"{self._connection.url} serves no model: ask an API process with role all or inference")
        return names[0]

    def profile_names(self, ids: set[str]) -> dict[str, str]:
        """Id → name of the profiles that still exist; reads pages until all are found."""
        names: dict[str, str] = {}
        for row in self.rows("/v1/profiles") if ids else ():
            if row["id"] in ids:
                names[row["id"]] = row["name"]
            if len(names) == len(ids):
                break
        return names

    def job_events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job's events until it has ended. After a lost connection, goes on from the last event.

        Yields: objects with `status`, `stage`, `progress`; the last one has a final status.
        """
        last_id = ""
        gone_since: float | None = None
        while True:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            try:
                for event in self._sse("GET", f"{job_path(job_id)}/events", headers=headers):
                    gone_since = None
                    last_id = event.id or last_id
                    if event.event == "error":
                        break
                    content: dict[str, Any] = json.loads(event.data)
                    yield content
                    if content.get("status") in _FINISHED:
                        return
            except CliError as error:
                gone_since = gone_since or time.monotonic()
                lost = not isinstance(error, ApiError) or error.status == 503
                if not lost or time.monotonic() - gone_since > self._patience_s:
                    raise
            time.sleep(_RECONNECT_S)

    def chat(self, body: Mapping[str, Any], user: str | None = None) -> Generator[dict[str, Any]]:
        """The chunks of a streamed chat completion.

        Args:
            body: OpenAI's request body, without `stream`.
            user: the end user whose assigned profile applies.
        """
        for event in self._sse("POST", chat_path(user), json={**body, "stream": True}):
            if event.data == "[DONE]":
                return
            chunk: dict[str, Any] = json.loads(event.data)
            if "error" in chunk:
                raise ApiError(500, str(chunk["error"].get("message")), chunk["error"])
            yield chunk

    def _sse(self, method: str, path: str, **request: Any) -> Iterator[ServerSentEvent]:
        """The server-sent events of an answer, without heartbeats. Raises: as `call`."""
        try:
            with connect_sse(self._http, method, path, **request) as source:
                if source.response.status_code != 200:
                    source.response.read()
                    self._raise_for(source.response)
                # After the first id, httpx-sse makes an empty event of a heartbeat, which is a comment.
                yield from (event for event in source.iter_sse() if event.data)
        except (httpx.HTTPError, SSEError) as error:
            raise self._unreachable(error) from None
        except ValueError as error:
            raise _unsendable(error) from None

    def _request(self, method: str, path: str, body: object, query: Mapping[str, str | int | None]) -> httpx.Response:
        params = {name: value for name, value in query.items() if value is not None}
        try:
            response = self._http.request(method, path, json=body, params=params)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except ValueError as error:
            raise _unsendable(error) from None
        except KeyboardInterrupt:
            if method == "GET":
                raise
            message = "stopped before the server's answer; it may have begun the work: see `alignez jobs list`"
            raise CliError(message, code="interrupted", exit_status=130) from None
        self._raise_for(response)
        return response

    def _unreachable(self, error: Exception) -> CliError:
        url = self._connection.url
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            reason = f" ({error})" if str(error) else ""
            message = (
                f"nothing answers at {url}{reason}: start the stack with `alignez up`, or name a server with --url"
            )
            return CliError(message, code="unreachable")
        if isinstance(error, httpx.TimeoutException):
            message = f"{url} gave no answer within {_TIMEOUT_S:.0f} s: try again; {url}/ready shows its state"
            return CliError(message, code="timed_out")
        message = f"the connection to {url} broke ({error or type(error).__name__}): try again"
        return CliError(message, code="connection_lost")

    def _not_alignez(self) -> CliError:
        return CliError(f"{self._connection.url} does not answer as an alignez server does: check --url")

    def _raise_for(self, response: httpx.Response) -> None:
        """Raises: ApiError: the answer is a refusal."""
        if response.is_success:
            return
        try:
            error = dict(response.json()["error"])
        except (ValueError, KeyError, TypeError):
            error = {}
        status = response.status_code
        message = _refusal(error) or f"{self._connection.url} answered {status}: check --url"
        if status == 401:
            message = "the key was refused: pass --key or set ALIGNEZ_KEY (`alignez keys create` makes one)"
        elif status == 403:
            message += "; use a key of that role"
        elif status == 503:
            message += f"; try again in {response.headers.get('retry-after', 'a few')} s"
        elif status == 404:
            message += self._hint(error)
        raise ApiError(status, message, error)

    def _hint(self, error: Mapping[str, Any]) -> str:
        """Advice for an unknown profile: the profile with the most similar name."""
        details = error.get("details") or {}
        if details.get("kind") != "profile":
            return ""
        # No `call`: an error here must not hide the first one.
        try:
            known = self._http.get("/v1/profiles", params={"limit": _NAMES_LIMIT}).json()["data"]
            near = difflib.get_close_matches(str(details["ref"]), [row["name"] for row in known], 1)
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return ""
        return f"; did you mean {near[0]}?" if near else "; `alignez profiles list` shows yours"


def is_ready(url: str) -> bool:
    """True when the server on this machine reports that all its parts are ready."""
    try:
        return httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def job_path(job_id: str) -> str:
    """Path of a job. The id is escaped, because it may be any text."""
    return f"/v1/jobs/{quote(job_id, safe='')}"


def chat_path(user: str | None) -> str:
    """Path of chat completions; `user`: the end user whose assigned profile applies."""
    return f"/v1/users/{quote(user, safe='')}/chat/completions" if user else "/v1/chat/completions"


def profile_path(name: str) -> str:
    """Path of a profile, by name or id."""
    return f"/v1/profiles/{quote(name, safe='')}"


def profile_choice(text: str, strength: float | None = None) -> dict[str, Any]:
    """The request's `profile` field for `name`, `name:alias` or `name#version`."""
    choice: dict[str, Any]
    name, hash_, version = text.partition("#")
    if hash_ and version.isdecimal():
        choice = {"name": name, "version": int(version)}
    else:
        name, colon, alias = text.partition(":")
        choice = {"name": name, "alias": alias} if colon and alias else {"name": text}
    if strength is not None:
        choice["strength"] = strength
    return choice


def _unsendable(error: ValueError) -> Exception:
    """The error for a body that JSON cannot hold."""
    if isinstance(error, UnicodeError):
        return error
    return usage_error(f"NaN and infinities cannot be sent ({error})")


def _refusal(error: Mapping[str, Any]) -> str:
    """The server's message with the name of the wrong field; all fields if there are several."""
    details = error.get("details") or {}
    fields = details.get("errors") or []
    if len(fields) > 1:
        return "; ".join(f"{one['field']}: {one['message']}" for one in fields[:_SHOWN_ERRORS])
    message = str(error.get("message") or "")
    field = details.get("field")
    return f"{field}: {message}" if field and str(field) not in message else message
