"""A server for the commands that talk to one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.fake_server import Request, serving


@pytest.fixture
def server() -> Iterator[tuple[str, list[Request]]]:
    """Its URL, and the requests that it got; its key is `good`."""
    with serving() as found:
        yield found
