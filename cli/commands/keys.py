"""`alignez keys`: API keys of the server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.commands.admin import TenantOption, account_path
from cli.errors import usage_error
from cli.groups import new_app
from cli.shell import connected, shell_of

keys_app = new_app("Make, list, rotate and revoke API keys (needs an admin key; other tenants' an operator key).")


@keys_app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the key, such as its purpose.")],
    role: Annotated[
        str,
        typer.Option(
            help="inference (generates), member (profiles), admin (keys, usage, audit), operator (all tenants)."
        ),
    ] = "member",
    profile: Annotated[str | None, typer.Option(help="The only profile of an inference key.")] = None,
    end_user: Annotated[str | None, typer.Option(help="The only end user of an inference key.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Tenant name, created if it is new; your own by default.")] = None,
    expires_days: Annotated[float | None, typer.Option(help="Lifetime in days; unlimited by default.")] = None,
    database: Annotated[
        bool, typer.Option("--database", help="Write to ALIGNEZ_DATABASE_URL, not through REST: for the first key.")
    ] = False,
) -> None:
    """Make a key and print its secret, which is never shown again.

    Example: alignez keys create my-app --role inference --profile cheerful --expires-days 90
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
        body |= {field: value for field, value in (("profile", profile), ("end_user", end_user)) if value is not None}
        tenant_id = None
        if tenant is not None:
            known = {row["name"]: row["id"] for row in client.all("/admin/tenants")}
            tenant_id = known.get(tenant) or client.call("POST", "/admin/tenants", {"name": tenant})["id"]
        row = client.call("POST", account_path("keys", tenant_id), body, tenant=tenant_id)
    shell.say(row, row["secret"])


@keys_app.command("list")
def list_(context: typer.Context, tenant: TenantOption = None) -> None:
    """List keys, with revoked and expired ones.

    Example: alignez keys list
    """
    with connected(context) as (shell, client):
        rows = client.all(account_path("keys", tenant), tenant=tenant)
    shell.table(
        rows,
        {
            "id": "id",
            "name": "name",
            "role": "role",
            "begins": "prefix",
            "state": _state,
            "last used": "last_used_at",
            "from": "last_used_from",
        },
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
        row = client.call("DELETE", f"{account_path('keys', tenant)}/{quote(key_id, safe='')}", tenant=tenant)
    shell.say(row, f"revoked {row['name']} ({row['prefix']}…)")


@keys_app.command()
def rotate(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="Id, from `alignez keys list`.")],
    overlap_hours: Annotated[float, typer.Option(min=0, max=720, help="The old key works for so long.")] = 1.0,
    tenant: TenantOption = None,
) -> None:
    """Replace a key by one with the same rights, and print the new secret.

    Example: alignez keys rotate 01a21a18-b98b-70f1-a4ab-5a30923aad0c --overlap-hours 24
    """
    with connected(context) as (shell, client):
        path = f"{account_path('keys', tenant)}/{quote(key_id, safe='')}/rotate"
        row = client.call("POST", path, {"overlap_s": round(overlap_hours * 3600)}, tenant=tenant)
    shell.say(row, row["secret"])


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
    from profiles.service import KeySpec, create_key, ensure_tenant
    from profiles.settings import DatabaseSettings, read_settings
    from profiles.uow import PLATFORM, UnitOfWork, make_session_factory

    sessions = make_session_factory(read_settings(DatabaseSettings))
    try:
        with UnitOfWork.open(sessions, PLATFORM) as uow:
            _, secret = create_key(uow, ensure_tenant(uow, tenant).id, KeySpec(role, name, expires))
        return secret
    finally:
        sessions.kw["bind"].dispose()
