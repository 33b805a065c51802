"""`alignez keys`: API keys of the server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import quote

import typer

from cli.errors import usage_error
from cli.groups import new_app
from cli.shell import shell_of

keys_app = new_app("Make, list and revoke API keys (needs an admin key).")

DatabaseOption = Annotated[
    bool,
    typer.Option("--database", help="Write to ALIGNEZ_DATABASE_URL itself, not through REST: for the very first key."),
]


@keys_app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for, to recognise it by.")],
    role: Annotated[str, typer.Option(help="admin (manages everything) or member (own tenant's profiles).")] = "member",
    tenant: Annotated[str | None, typer.Option(help="Tenant name; made if new. Your own by default.")] = None,
    expires_days: Annotated[float | None, typer.Option(help="Days that it works; for ever by default.")] = None,
    database: DatabaseOption = False,
) -> None:
    """Make a key and print its secret, which is shown this once.

    Example: alignez keys create my-app --role member --expires-days 90
    """
    shell = shell_of(context)
    expires = _expiry(expires_days)
    if database:
        secret = _create_in_database(name, role, tenant or "default", expires)
        shell.say({"name": name, "role": role, "secret": secret}, secret)
        return
    with shell.connect() as client:
        body: dict[str, object] = {"name": name, "role": role}
        if expires is not None:
            body["expires_at"] = expires.isoformat()
        if tenant is not None:
            known = {row["name"]: row["id"] for row in client.all("/admin/tenants")}
            body["tenant_id"] = known.get(tenant) or client.call("POST", "/admin/tenants", {"name": tenant})["id"]
        row = client.call("POST", "/admin/keys", body)
    shell.say(row, row["secret"])


@keys_app.command("list")
def list_(
    context: typer.Context,
    tenant: Annotated[str | None, typer.Option(help="Tenant id; your own by default.")] = None,
) -> None:
    """List keys, revoked and expired ones too.

    Example: alignez keys list
    """
    shell = shell_of(context)
    with shell.connect() as client:
        rows = client.all("/admin/keys", tenant=tenant)
    shell.table(
        rows,
        ["id", "name", "role", "begins", "state", "last used"],
        [[row["id"], row["name"], row["role"], row["prefix"], _state(row), row["last_used_at"]] for row in rows],
        "no keys",
    )


@keys_app.command()
def revoke(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="Id, from `alignez keys list`.")],
    tenant: Annotated[str | None, typer.Option(help="Tenant id; your own by default.")] = None,
) -> None:
    """End a key; requests with it are refused within seconds.

    Example: alignez keys revoke 01a21a18-b98b-70f1-a4ab-5a30923aad0c
    """
    shell = shell_of(context)
    with shell.connect() as client:
        row = client.call("DELETE", f"/admin/keys/{quote(key_id, safe='')}", tenant=tenant)
    shell.say(row, f"revoked {row['name']} ({row['prefix']}…)")


def _expiry(days: float | None) -> datetime | None:
    """Raises: CliError: no date is that far away."""
    try:
        return None if days is None else datetime.now(UTC) + timedelta(days=days)
    except (OverflowError, ValueError):
        raise usage_error(f"--expires-days {days:g} is no date: leave it out for a key without an end") from None


def _state(row: dict[str, str | None]) -> str:
    if row["revoked_at"]:
        return "revoked"
    expires = row["expires_at"]
    if expires is None:
        return "works"
    return "expired" if datetime.fromisoformat(expires) <= datetime.now(UTC) else f"works until {expires[:10]}"


def _create_in_database(name: str, role: str, tenant: str, expires: datetime | None) -> str:
    from profiles.service import create_key, ensure_tenant
    from profiles.settings import DatabaseSettings
    from profiles.uow import UnitOfWork, make_session_factory

    sessions = make_session_factory(DatabaseSettings())
    try:
        with UnitOfWork.open(sessions) as uow:
            _, secret = create_key(uow, ensure_tenant(uow, tenant).id, role, name, expires)
        return secret
    finally:
        sessions.kw["bind"].dispose()
