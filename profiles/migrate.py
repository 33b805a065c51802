"""Migrates a database to this release's schema, and checks its state."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, make_url
from sqlalchemy.orm import Session

from profiles.errors import ProfilesError
from profiles.settings import DatabaseSettings, read_settings
from profiles.uow import database_errors, not_in


def upgrade(url: str | None = None) -> bool:
    """Applies the missing migrations. Several processes may call it at once: a lock serialises them.

    Args:
        url: SQLAlchemy URL; None: that of the settings.
    Returns: False if a newer release has migrated the database (as after a rollback of the processes), which is then
        left unchanged.
    Raises: DatabaseUnavailable.
    """
    parsed = make_url(url or read_settings(DatabaseSettings).database_url)
    engine = create_engine(parsed, connect_args=not_in(parsed, {"connect_timeout": 5}))
    try:
        with database_errors(), engine.connect() as connection:
            if _is_newer(connection):
                return False
            command.upgrade(alembic_config(connection), "head")
            return True
    finally:
        engine.dispose()


def serves_this_release(session: Session) -> bool:
    """True when the database has the schema of this release or of a newer one.

    The previous release's code works with every migration. So processes of two releases can share a database while
    one release replaces the other, in either direction.
    """
    connection = session.connection()
    return MigrationContext.configure(connection).get_current_heads() == _heads() or _is_newer(connection)


def _is_newer(connection: Connection) -> bool:
    """True when this release does not know the database's revision."""
    current = MigrationContext.configure(connection).get_current_heads()
    return any(revision not in _known() for revision in current)


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration without a file, so that an installed package works like a checkout."""
    config = Config()
    config.set_main_option("script_location", str(_directory()).replace("%", "%%"))
    config.set_main_option("file_template", "%%(year)d_%%(month).2d_%%(day).2d_%%(hour).2d%%(minute).2d_%%(slug)s")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@lru_cache(maxsize=1)
def _heads() -> tuple[str, ...]:
    return tuple(ScriptDirectory.from_config(alembic_config()).get_heads())


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    return frozenset(script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions())


def _directory() -> Path:
    """Path of the `migrations` package. It is not imported, because its `env.py` runs only inside Alembic."""
    spec = importlib.util.find_spec("migrations")
    if spec is None or not spec.submodule_search_locations:
        raise ProfilesError("the package 'migrations' is not installed")
    return Path(next(iter(spec.submodule_search_locations)))
