"""`alignez keys`: API keys of the server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.commands.admin import TenantOption
from cli.errors import usage_error
from cli.groups import new_app
from cli.shell import connected, shell_of

keys_app = new_app("Make, list and revoke API keys (needs an admin key).")


@keys_app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the key, such as its purpose.")],
    role: Annotated[str, typer.Option(help="admin (manages everything) or member (own tenant's profiles).")] = "member",
    tenant: Annotated[str | None, typer.Option(help="Tenant name, created if it is new; your own by default.")] = None,
    expires_days: Annotated[float | None, typer.Option(help="Lifetime in days; unlimited by default.")] = None,
    database: Annotated[
        bool, typer.Option("--database", help="Write to ALIGNEZ_DATABASE_URL, not through REST: for the first key.")
    ] = False,
) -> None:
    """Make a key and print its secret, which is never shown again.

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
def list_(context: typer.Context, tenant: TenantOption = None) -> None:
    """List keys, with revoked and expired ones.

    Example: alignez keys list
    """
    with connected(context) as (shell, client):
        rows = client.all("/admin/keys", tenant=tenant)
    shell.table(
        rows,
        {"id": "id", "name": "name", "role": "role", "begins": "prefix", "state": _state, "last used": "last_used_at"},
        "no keys",
    )


@keys_app.command()
def revoke(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="Id, from `alignez keys list`.")],
    tenant: TenantOption = None,
) -> None:
    """Revoke a key; requests with it are refused within seconds.

    Example: alignez keys revoke 01a21a18-b98b-70f1-a4ab-5a30923aad0c
    """
    with connected(context) as (shell, client):
        row = client.call("DELETE", f"/admin/keys/{quote(key_id, safe='')}", tenant=tenant)
    shell.say(row, f"revoked {row['name']} ({row['prefix']}…)")


def _expiry(days: float | None) -> datetime | None:
    """The time after `days` days. Raises: CliError: it is no valid date."""
    try:
        return None if days is None else datetime.now(UTC) + timedelta(days=days)
    except (OverflowError, ValueError):
        raise usage_error(f"--expires-days {days:g} is not a valid lifetime: omit it for no expiry") from None


def _state(row: dict[str, Any]) -> str:
    if row["revoked_at"]:
        return "revoked"
    expires: str | None = row["expires_at"]
    if expires is None:
        return "works"
    return "expired" if datetime.fromisoformat(expires) <= datetime.now(UTC) else f"works until {expires[:10]}"


def _create_in_database(name: str, role: str, tenant: str, expires: datetime | None) -> str:
    from profiles.service import create_key, ensure_tenant
    from profiles.settings import DatabaseSettings, read_settings
    from profiles.uow import UnitOfWork, make_session_factory

    sessions = make_session_factory(read_settings(DatabaseSettings))
    try:
        with UnitOfWork.open(sessions) as uow:
            _, secret = create_key(uow, ensure_tenant(uow, tenant).id, role, name, expires)
        return secret
    finally:
        sessions.kw["bind"].dispose()
