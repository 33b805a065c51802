"""The declarative base, and the column types that many tables share."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Enum, ForeignKey, Identity, MetaData, Uuid, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

from profiles.ids import new_id

#: Names of constraints and indexes, the same on every machine, so that a migration can refer to them.
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


PublicId = Annotated[UUID, mapped_column(primary_key=True, default=new_id)]
SerialId = Annotated[int, mapped_column(BigInteger, Identity(always=True), primary_key=True)]
TenantId = Annotated[UUID, mapped_column(ForeignKey("tenants.id"))]
CreatedAt = Annotated[datetime, mapped_column(server_default=func.now())]


def state_column(states: type[StrEnum], name: str) -> Enum:
    """A text column with a CHECK of a StrEnum's values; a Postgres enum would need ALTER TYPE for each new one."""
    return Enum(
        states,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=16,
        values_callable=lambda members: [member.value for member in members],
    )
