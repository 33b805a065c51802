"""The errors of the command line: one line for a person, one JSON object for a script, no traceback."""

from __future__ import annotations

from typing import Any


class CliError(Exception):
    """Something a person has to change; the message says what.

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
        #: Of the request that the server refused.
        self.request_id: str | None = None


def usage_error(message: str) -> CliError:
    """The error of a command line that asks for what cannot be; exit status 2."""
    return CliError(message, code="usage_error", exit_status=2)
