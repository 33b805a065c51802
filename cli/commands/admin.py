"""`alignez usage` and `alignez audit`: tokens by profile and day, and the audit log."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer

from cli.shell import connected

TenantOption = Annotated[str | None, typer.Option(help="Tenant id, for operators; your own by default.")]


def account_path(what: str, tenant: str | None) -> str:
    """The path of one's own keys, usage or audit log, or of another tenant's."""
    return f"/v1/{what}" if tenant is None else f"/admin/{what}"


def usage(
    context: typer.Context,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="First day (UTC); all by default.")
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Show requests and tokens by profile and day (needs an admin key).

    Example: alignez usage --since 2026-11-01
    """
    with connected(context) as (shell, client):
        rows = client.all(
            account_path("usage", tenant), since=since.date().isoformat() if since else None, tenant=tenant
        )
        names = client.profile_names({row["profile_id"] for row in rows if row["profile_id"]})
    shell.table(
        rows,
        {
            "day": "day",
            "profile": lambda row: names.get(row["profile_id"], row["profile_id"]) or "(base model)",
            "requests": "requests",
            "prompt tokens": "prompt_tokens",
            "new tokens": "completion_tokens",
            "fit tokens": "fit_tokens",
        },
        "no usage yet",
    )


def audit(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Most rows to show, newest first.")] = 50,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no entry was changed or removed; status 1 if one was.")
    ] = False,
    tenant: TenantOption = None,
) -> None:
    """Show changes of profiles, keys and assignments, with the key that made each (needs an admin key).

    Example: alignez audit --limit 20
    """
    with connected(context) as (shell, client):
        if verify:
            verdict = client.call("GET", f"{account_path('audit', tenant)}/verify", tenant=tenant)
            wrong = verdict["first_wrong"]
            state = "intact" if wrong is None else f"entry {wrong} was changed or is missing"
            shell.say(verdict, f"{verdict['entries']} entries, {state}; head {verdict['head']}")
            raise typer.Exit(wrong is not None)
        rows = client.all(account_path("audit", tenant), limit, tenant=tenant)
    shell.table(
        rows,
        {
            "when": lambda row: row["created_at"][:19],
            "action": "action",
            "subject": lambda row: f"{row['subject']} {row['subject_id']}",
            "key": lambda row: row["key_id"] or "-",
            "from": lambda row: row["address"] or "-",
            "details": lambda row: json.dumps(row["details"], ensure_ascii=False),
        },
        "no changes yet",
    )
