"""The answer to an erasure."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import JSONResponse

from api.http.fields import Row
from profiles.service import Receipt


class ReceiptRead(Row):
    """What was erased; the audit log has the same entry. `removed` counts rows by table."""

    kind: str
    id: str
    removed: dict[str, int]
    erased_at: datetime


Erase = Annotated[bool, Query(description="remove it for good, with a receipt")]
#: For a route that answers 204 otherwise.
ERASED: dict[int | str, dict[str, Any]] = {200: {"model": ReceiptRead, "description": "Erased"}}


def receipt(made: Receipt) -> JSONResponse:
    """The response with a receipt."""
    return JSONResponse(ReceiptRead.model_validate(made).model_dump(mode="json"))
