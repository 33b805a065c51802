"""Where a job comes from: the request that asked for it, and its trace. An index to count a tenant's open jobs by.

Both columns may be missing: jobs of before, and of the previous release's code, have none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_25_1220"
down_revision = "2026_11_25_0058"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("request_id", sa.String(length=128), nullable=True))
    op.add_column("jobs", sa.Column("traceparent", sa.String(length=55), nullable=True))
    op.create_index(
        "ix_jobs_unfinished",
        "jobs",
        ["tenant_id"],
        postgresql_where=sa.text("finished_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_unfinished", "jobs")
    op.drop_column("jobs", "traceparent")
    op.drop_column("jobs", "request_id")
