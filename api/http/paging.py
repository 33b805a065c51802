"""The response body of all lists."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel, Field

T = TypeVar("T")


class Listed(BaseModel, Generic[T]):
    """A page: `next` is the cursor of the page after it, null at the end."""

    data: list[T]
    next: str | None = Field(None, description="pass it as `cursor`")
