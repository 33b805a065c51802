"""Runs migrations on the connection from `profiles.migrate`, or on the database of the settings."""

from __future__ import annotations

from alembic import context
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import Connection, create_engine, text

from profiles.models import Base
from profiles.settings import DatabaseSettings

#: Key of the advisory lock that serialises migrations; the same in every release.
_LOCK = 4_202_611_230


def _render(kind: str, value: object, autogen_context: object) -> str | bool:
    """The source text of vector columns in migrations."""
    if kind == "type" and isinstance(value, VECTOR):
        autogen_context.imports.add("from pgvector.sqlalchemy import VECTOR")  # type: ignore[attr-defined]
        return "VECTOR()"
    return False


def _run(connection: Connection) -> None:
    # No limits on the wait for the advisory lock: another migration may take long, and the wait blocks nobody.
    connection.execute(text("SET statement_timeout = 0"))
    connection.execute(text("SET lock_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
    # A short limit on table locks, because a migration that waits for one blocks all later queries on the table.
    connection.execute(text("SET lock_timeout = '5s'"))
    connection.commit()
    try:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            compare_type=True,
            render_item=_render,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})
        connection.execute(text("RESET lock_timeout"))
        connection.execute(text("RESET statement_timeout"))
        connection.commit()


def _run_online() -> None:
    given = context.config.attributes.get("connection")
    if isinstance(given, Connection):
        _run(given)
        return
    engine = create_engine(DatabaseSettings().database_url)
    with engine.connect() as connection:
        _run(connection)
    engine.dispose()


def _run_offline() -> None:
    """`alembic upgrade head --sql`: a script for database administrators."""
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, render_item=_render, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    _run_offline()
else:
    _run_online()
