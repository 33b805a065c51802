"""Bringing a database to the newest schema, and telling whether it is there."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine
from sqlalchemy.orm import Session

from profiles.errors import ProfilesError
from profiles.settings import DatabaseSettings
from profiles.uow import database_errors


def upgrade(url: str | None = None, revision: str = "head") -> None:
    """Applies what is missing; safe to start from several processes at once (they take turns).

    Args:
        url: SQLAlchemy URL; None: the settings'.
    Raises: DatabaseUnavailable.
    """
    engine = create_engine(url or DatabaseSettings().database_url, connect_args={"connect_timeout": 5})
    try:
        with database_errors(), engine.connect() as connection:
            command.upgrade(alembic_config(connection), revision)
    finally:
        engine.dispose()


def at_head(session: Session) -> bool:
    """Whether the database has exactly the schema of this release's code."""
    context = MigrationContext.configure(session.connection())
    return context.get_current_heads() == _heads()


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration without a file, so that an installed package works as a checkout does."""
    config = Config()
    config.set_main_option("script_location", str(_directory()).replace("%", "%%"))
    config.set_main_option("file_template", "%%(year)d_%%(month).2d_%%(day).2d_%%(hour).2d%%(minute).2d_%%(slug)s")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@lru_cache(maxsize=1)
def _heads() -> tuple[str, ...]:
    return tuple(ScriptDirectory.from_config(alembic_config()).get_heads())


def _directory() -> Path:
    """Where the `migrations` package lies; found, not imported, for its `env.py` runs only inside Alembic."""
    spec = importlib.util.find_spec("migrations")
    if spec is None or not spec.submodule_search_locations:
        raise ProfilesError("the package 'migrations' is not installed")
    return Path(next(iter(spec.submodule_search_locations)))
