"""The first key of a deployment, which can make all others."""

from __future__ import annotations

from pathlib import Path

from cli.config import write_atomically
from profiles.errors import Unauthenticated
from profiles.models import Role
from profiles.service import KeySpec, authenticate, create_key, ensure_tenant
from profiles.uow import PLATFORM, UnitOfWork, make_session_factory

TENANT = "default"


def ensure_operator_key(database_url: str, key_file: Path) -> bool:
    """Keeps the key in `key_file` if this database accepts it; otherwise makes tenant `default` and a new operator key.

    Args:
        database_url: URL of a migrated database.
        key_file: written with mode 0600, after the key was committed.
    Returns: True if the key is new.
    """
    sessions = make_session_factory(database_url)
    try:
        if key_file.exists():
            try:
                with UnitOfWork.open(sessions, PLATFORM) as uow:
                    if authenticate(uow, key_file.read_text(encoding="utf-8").strip()).role is Role.OPERATOR:
                        return False
            except Unauthenticated:
                pass  # another database, or a revoked key
        with UnitOfWork.open(sessions, PLATFORM) as uow:
            tenant = ensure_tenant(uow, TENANT)
            _, secret = create_key(uow, tenant.id, KeySpec(Role.OPERATOR, "alignez up"))
        write_atomically(key_file, secret + "\n")
        return True
    finally:
        sessions.kw["bind"].dispose()
