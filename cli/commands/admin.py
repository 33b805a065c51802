"""`alignez usage` and `alignez audit`: tokens by profile and day, and the record of changes."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer

from cli.shell import shell_of

TenantOption = Annotated[str | None, typer.Option(help="Tenant id; your own by default.")]


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
    shell = shell_of(context)
    with shell.connect() as client:
        rows = client.all("/admin/usage", since=since.date().isoformat() if since else None, tenant=tenant)
        names = client.profile_names({row["profile_id"] for row in rows if row["profile_id"]})
    shell.table(
        rows,
        ["day", "profile", "requests", "prompt tokens", "new tokens", "fit tokens"],
        [
            [
                row["day"],
                names.get(row["profile_id"], row["profile_id"]) or "(base model)",
                row["requests"],
                row["prompt_tokens"],
                row["completion_tokens"],
                row["fit_tokens"],
            ]
            for row in rows
        ],
        "no use yet",
    )


def audit(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 50,
    tenant: TenantOption = None,
) -> None:
    """Show changes of profiles, keys and assignments, with the key that made each (needs an admin key).

    Example: alignez audit --limit 20
    """
    shell = shell_of(context)
    with shell.connect() as client:
        rows = client.all("/admin/audit", limit, tenant=tenant)
    shell.table(
        rows,
        ["when", "action", "subject", "key", "details"],
        [
            [
                row["created_at"][:19],
                row["action"],
                f"{row['subject']} {row['subject_id']}",
                row["key_id"] or "-",
                json.dumps(row["details"], ensure_ascii=False),
            ]
            for row in rows
        ],
        "no changes yet",
    )
