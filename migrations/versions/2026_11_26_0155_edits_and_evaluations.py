"""Versions hold low-rank edits and a prefix in place of directions; evaluations; texts of jobs under way.

Ready versions of before have directions that no release serves any more: they are archived, and their aliases go.
Not for use beside the previous release's code (nothing has been released yet).
"""

from __future__ import annotations

import importlib

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import VECTOR
from sqlalchemy.dialects import postgresql

revision = "2026_11_26_0155"
down_revision = "2026_11_25_1220"
branch_labels = None
depends_on = None

_SPLITS = ("fit", "tune", "held_out", "unused")
_READY = (
    "state <> 'ready' OR (sha256 IS NOT NULL AND quality IS NOT NULL AND ready_at IS NOT NULL"
    " AND base_model_id IS NOT NULL AND layers IS NOT NULL{more})"
)


def upgrade() -> None:
    op.execute("DELETE FROM profile_aliases")
    op.execute("UPDATE profile_versions SET state = 'archived', archived_at = now() WHERE state = 'ready'")
    op.drop_table("directions")
    op.execute("DROP VIEW pair_representations")
    op.execute("DROP FUNCTION write_pair_representation()")
    op.drop_column("query_representations", "plain")
    _version_columns()
    _job_columns()
    op.add_column(
        "fit_queries",
        sa.Column(
            "split",
            sa.Enum(*_SPLITS, name="split", native_enum=False, create_constraint=True, length=16),
            server_default="fit",
            nullable=False,
        ),
    )
    op.add_column("fit_queries", sa.Column("persona_group", sa.Integer(), server_default=sa.text("0"), nullable=False))
    _create_edits()
    _create_evaluations()
    _create_texts()


def downgrade() -> None:
    for table in ("job_texts", "evaluations", "version_edits"):
        op.drop_table(table)
    op.drop_column("fit_queries", "persona_group")
    op.drop_column("fit_queries", "split")
    op.execute("DELETE FROM jobs WHERE kind <> 'fit'")
    op.drop_index("ix_jobs_version_id", "jobs")
    op.drop_index("uq_jobs_fit_of_version", "jobs")
    op.create_unique_constraint("uq_jobs_version_id", "jobs", ["version_id"])
    op.drop_column("jobs", "request")
    op.drop_column("jobs", "kind")
    for name in ("ready_is_complete", "positions_known", "lookup_known"):
        op.drop_constraint(op.f(f"ck_profile_versions_{name}"), "profile_versions")
    op.create_check_constraint(
        op.f("ck_profile_versions_ready_is_complete"), "profile_versions", _READY.format(more="")
    )
    for column in ("lookup", "positions", "steps", "prefix", "method"):
        op.drop_column("profile_versions", column)
    op.add_column("query_representations", sa.Column("plain", sa.LargeBinary(), nullable=True))
    op.execute("ALTER TABLE query_representations ALTER COLUMN plain SET STORAGE EXTERNAL")
    before = importlib.import_module("migrations.versions.2026_11_25_0058_representations_by_query")
    before.create_view()
    _create_directions()


def _version_columns() -> None:
    op.add_column("profile_versions", sa.Column("method", sa.String(length=16), nullable=True))
    op.add_column("profile_versions", sa.Column("prefix", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("profile_versions", sa.Column("steps", sa.Integer(), nullable=True))
    for name, default in (("positions", "answer"), ("lookup", "none")):
        op.add_column("profile_versions", sa.Column(name, sa.String(length=16), server_default=default, nullable=False))
    op.drop_constraint(op.f("ck_profile_versions_ready_is_complete"), "profile_versions")
    for name, rule in (
        ("ready_is_complete", _READY.format(more=" AND method IS NOT NULL")),
        ("positions_known", "positions IN ('answer', 'all')"),
        ("lookup_known", "lookup IN ('none', 'groups', 'neighbors')"),
    ):
        op.create_check_constraint(op.f(f"ck_profile_versions_{name}"), "profile_versions", rule)


def _job_columns() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "kind",
            sa.Enum("fit", "evaluate", name="kind", native_enum=False, create_constraint=True, length=16),
            server_default="fit",
            nullable=False,
        ),
    )
    op.add_column("jobs", sa.Column("request", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.drop_constraint("uq_jobs_version_id", "jobs")
    op.create_index(
        "uq_jobs_fit_of_version", "jobs", ["version_id"], unique=True, postgresql_where=sa.text("kind = 'fit'")
    )
    op.create_index(op.f("ix_jobs_version_id"), "jobs", ["version_id"], unique=False)


def _create_edits() -> None:
    op.create_table(
        "version_edits",
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("persona_group", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("layer", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        *(sa.Column(name, sa.LargeBinary(), nullable=False) for name in ("u", "v", "c")),
        _tenant("version_edits"),
        _version("version_edits"),
        sa.PrimaryKeyConstraint("version_id", "persona_group", "layer", name=op.f("pk_version_edits")),
    )
    for name in ("u", "v"):  # never compressed: the attempt costs time, and such numbers do not shrink
        op.execute(f"ALTER TABLE version_edits ALTER COLUMN {name} SET STORAGE EXTERNAL")
    _keep_ready("version_edits")


def _create_evaluations() -> None:
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("judge", sa.Text(), nullable=False),
        sa.Column("quality", sa.String(length=16), nullable=False),
        sa.Column("reasons", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("report", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("choice", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("quality IN ('good', 'weak')", name=op.f("ck_evaluations_quality_known")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_evaluations_job_id_jobs")),
        _tenant("evaluations"),
        _version("evaluations"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint("job_id", name=op.f("uq_evaluations_job_id")),
    )
    op.create_index(op.f("ix_evaluations_version_id_id"), "evaluations", ["version_id", "id"], unique=False)


def _create_texts() -> None:
    op.create_table(
        "job_texts",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_texts_job_id_jobs"), ondelete="CASCADE"),
        _tenant("job_texts"),
        sa.PrimaryKeyConstraint("job_id", "kind", "position", name=op.f("pk_job_texts")),
    )


def _create_directions() -> None:
    op.create_table(
        "directions",
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("layer", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        *(sa.Column(name, VECTOR(), nullable=True) for name in ("theta_help", "theta_harm", "theta")),
        sa.Column("tau", sa.Float(), nullable=True),
        _tenant("directions"),
        _version("directions"),
        sa.PrimaryKeyConstraint("version_id", "layer", name=op.f("pk_directions")),
    )
    _keep_ready("directions")


def _tenant(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f(f"fk_{table}_tenant_id_tenants"))


def _version(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_version_id_profile_versions")
    return sa.ForeignKeyConstraint(["version_id"], ["profile_versions.id"], name=name, ondelete="CASCADE")


def _keep_ready(table: str) -> None:
    op.execute(
        f"CREATE TRIGGER keep_ready BEFORE INSERT OR UPDATE OR DELETE ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION keep_ready_content()"
    )
