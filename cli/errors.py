"""The command line's own error: one line for a person, no traceback."""

from __future__ import annotations


class CliError(Exception):
    """Something a person has to change; the message says what."""
