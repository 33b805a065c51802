"""Cursor pagination over one ordered, unique column."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import BigInteger, Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from profiles.errors import InvalidSpec

MAX_LIMIT = 200

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some rows of a list, and the cursor of the next page (None: there is none)."""

    rows: list[T]
    next: str | None


def fetch_page(
    session: Session,
    statement: Select[T],
    column: InstrumentedAttribute[Any],
    cursor: str | None,
    limit: int,
    *,
    newest_first: bool = True,
) -> Page[T]:
    """One page of `statement`, ordered by `column` (a UUIDv7 or an integer, unique within the list).

    Unlike with offsets, rows that are added or removed between two pages neither repeat nor hide others.

    Raises: InvalidSpec: the cursor is invalid, or `limit` is outside 1 to `MAX_LIMIT`.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidSpec("limit", f"must be between 1 and {MAX_LIMIT}")
    if cursor is not None:
        last = _decode(cursor, column)
        statement = statement.where(column < last if newest_first else column > last)
    statement = statement.order_by(column.desc() if newest_first else column.asc()).limit(limit + 1)
    rows = list(session.scalars(statement))
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(rows, _encode(getattr(rows[-1], column.key)) if more else None)


def _encode(value: UUID | int) -> str:
    return base64.urlsafe_b64encode(str(value).encode()).decode().rstrip("=")


def _decode(cursor: str, column: InstrumentedAttribute[Any]) -> Any:
    """The column's value in a cursor. Raises: InvalidSpec: `_encode` makes no such cursor."""
    try:
        raw = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode("ascii")
        value = column.type.python_type(raw)
    except (ValueError, binascii.Error) as error:
        raise InvalidSpec("cursor", "is not a cursor of this list") from error
    bits = 63 if isinstance(column.type, BigInteger) else 31
    if _encode(value) != cursor or (isinstance(value, int) and not 0 <= value < 2**bits):
        raise InvalidSpec("cursor", "is not a cursor of this list")
    return value
