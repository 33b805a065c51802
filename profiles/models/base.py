"""The declarative base, public ids, and the column types that several tables share."""

from __future__ import annotations

import os
import time
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Enum, ForeignKey, ForeignKeyConstraint, Identity, MetaData, Uuid, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

#: Names of constraints and indexes, equal on every machine, so that a migration can refer to them.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own class attribute
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        UUID: Uuid(),
    }


def new_id() -> UUID:
    """A UUID version 7 (RFC 9562): 48 bits of milliseconds, then 74 random bits.

    Later ids sort later, so lists are paged by id, and new rows go to the end of an index.
    """
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value & (1 << 128) - 1)


PublicId = Annotated[UUID, mapped_column(primary_key=True, default=new_id)]
SerialId = Annotated[int, mapped_column(BigInteger, Identity(always=True), primary_key=True)]
TenantId = Annotated[UUID, mapped_column(ForeignKey("tenants.id"))]
CreatedAt = Annotated[datetime, mapped_column(server_default=func.now())]


def same_tenant(column: str, table: str, ondelete: str | None = None) -> ForeignKeyConstraint:
    """A reference to a row of the same tenant. The referred table has a unique constraint on id and tenant."""
    return ForeignKeyConstraint([column, "tenant_id"], [f"{table}.id", f"{table}.tenant_id"], ondelete=ondelete)


def state_column(states: type[StrEnum], name: str) -> Enum:
    """A text column with a CHECK of a StrEnum's values. A Postgres enum would need ALTER TYPE for each new value."""
    return Enum(
        states,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=16,
        values_callable=lambda members: [member.value for member in members],
    )
