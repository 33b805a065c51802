"""`alignez keys`: who may use the server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from cli.shell import DataDirOption, JsonOption, KeyOption, UrlOption, connect, new_app, out, print_table

keys_app = new_app("Make, list and revoke API keys (needs an admin key).")

DatabaseOption = Annotated[
    bool,
    typer.Option("--database", help="Write to ALIGNEZ_DATABASE_URL itself, not through REST: for the very first key."),
]


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, to recognise it by.")],
    role: Annotated[str, typer.Option(help="admin (manages everything) or member (own tenant's profiles).")] = "member",
    tenant: Annotated[str | None, typer.Option(help="Tenant name; made if new. Your own by default.")] = None,
    expires_days: Annotated[float | None, typer.Option(help="Days that it works; for ever by default.")] = None,
    database: DatabaseOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a key and print its secret, which is shown this once."""
    expires = datetime.now(UTC) + timedelta(days=expires_days) if expires_days is not None else None
    if database:
        out.print(_create_in_database(name, role, tenant or "default", expires), markup=False)
        return
    with connect(url, key, data_dir) as client:
        body: dict[str, object] = {"name": name, "role": role}
        if expires is not None:
            body["expires_at"] = expires.isoformat()
        if tenant is not None:
            known = {row["name"]: row["id"] for row in client.all("/admin/tenants")}
            body["tenant_id"] = known.get(tenant) or client.call("POST", "/admin/tenants", {"name": tenant})["id"]
        out.print(client.call("POST", "/admin/keys", body)["secret"], markup=False)


@keys_app.command("list")
def list_(
    tenant: Annotated[str | None, typer.Option(help="Tenant id; your own by default.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List keys, revoked and expired ones too."""
    with connect(url, key, data_dir) as client:
        rows = client.all("/admin/keys", tenant=tenant)
    if as_json:
        out.print_json(data=rows)
        return
    print_table(
        ["id", "name", "role", "begins", "state", "last used"],
        [[row["id"], row["name"], row["role"], row["prefix"], _state(row), row["last_used_at"]] for row in rows],
        "no keys",
    )


@keys_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id, from `alignez keys list`.")],
    tenant: Annotated[str | None, typer.Option(help="Tenant id; your own by default.")] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """End a key; requests with it are refused within seconds."""
    with connect(url, key, data_dir) as client:
        row = client.call("DELETE", f"/admin/keys/{key_id}", tenant=tenant)
    out.print(f"revoked {row['name']} ({row['prefix']}…)", markup=False)


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
