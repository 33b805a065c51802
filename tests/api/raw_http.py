"""HTTP/1.1 on a plain socket, for clients that send requests in parts or not at all."""

from __future__ import annotations

import socket
from http.client import HTTPResponse
from urllib.parse import urlsplit


def raw_connection(url: str) -> socket.socket:
    """A connection to the server of `url`."""
    address = urlsplit(url)
    assert address.hostname is not None
    return socket.create_connection((address.hostname, address.port or 80), timeout=20)


def read_reply(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next response."""
    reply = HTTPResponse(connection)
    reply.begin()
    return reply.status, reply.read()


def closed_by_server(connection: socket.socket) -> bool:
    """Whether the server closes the connection without a further byte."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
