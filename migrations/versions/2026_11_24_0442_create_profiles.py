"""All tables of the first release, and the triggers that keep versions and the audit log as they are.

Must work with the previous release's code, which still runs while this is applied: add first, remove a release later.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import VECTOR
from sqlalchemy.dialects import postgresql

revision = "2026_11_24_0442"
down_revision = None
branch_labels = None
depends_on = None

# A version that is ready, or was, changes in one way only: from ready to archived. An archived one may be deleted.
_KEEP_READY_VERSION = """
CREATE FUNCTION keep_ready_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.state = 'ready' THEN
            RAISE EXCEPTION 'version % is ready and immutable', OLD.id USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN OLD;
    END IF;
    IF OLD.state IN ('ready', 'archived') THEN
        IF OLD.state = 'ready' AND NEW.state = 'archived' THEN
            OLD.state := NEW.state;
            OLD.archived_at := NEW.archived_at;
        END IF;
        IF NEW IS DISTINCT FROM OLD THEN
            RAISE EXCEPTION 'version % is % and immutable', OLD.id, OLD.state
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    END IF;
    RETURN NEW;
END $$
"""

# The same for what a version consists of.
_KEEP_READY_CONTENT = """
CREATE FUNCTION keep_ready_content() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed uuid := CASE WHEN TG_OP = 'DELETE' THEN OLD.version_id ELSE NEW.version_id END;
BEGIN
    IF EXISTS (
        SELECT FROM profile_versions
        WHERE id = changed AND (state = 'ready' OR state = 'archived' AND TG_OP <> 'DELETE')
    ) THEN
        RAISE EXCEPTION 'the content of version % is immutable', changed
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END $$
"""

_KEEP_ROW = """
CREATE FUNCTION keep_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are never changed or removed', TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$
"""


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "base_models",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("revision", sa.String(length=100), nullable=True),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("n_layers", sa.Integer(), nullable=False),
        sa.Column("hidden_size", sa.Integer(), nullable=False),
        sa.Column("context_length", sa.Integer(), nullable=False),
        sa.Column("prompt_format", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_base_models")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_base_models_fingerprint")),
    )
    op.create_index(op.f("ix_base_models_name"), "base_models", ["name"], unique=False)
    op.create_table(
        "tenants",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("max_queued_jobs", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("max_queued_jobs > 0", name=op.f("ck_tenants_max_queued_jobs_positive")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name", name=op.f("uq_tenants_name")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column(
            "role",
            sa.Enum("admin", "member", name="role", native_enum=False, create_constraint=True, length=16),
            nullable=False,
        ),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_api_keys_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_api_keys_secret_sha256")),
    )
    op.create_index(op.f("ix_api_keys_tenant_id"), "api_keys", ["tenant_id"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("response", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_idempotency_keys_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_created_at"), "idempotency_keys", ["created_at"], unique=False)
    op.create_table(
        "profiles",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("base_model_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["base_model_id"], ["base_models.id"], name=op.f("fk_profiles_base_model_id_base_models")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_profiles_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_profiles")),
    )
    op.create_index(op.f("ix_profiles_tenant_id_id"), "profiles", ["tenant_id", "id"], unique=False)
    op.create_index(
        "uq_profiles_live_name",
        "profiles",
        ["tenant_id", "name"],
        unique=True,
        postgresql_where=sa.text("archived_at IS NULL"),
    )
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("profile_id", sa.Uuid(), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("targets", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("undone_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_alias_moves_key_id_api_keys")),
        sa.ForeignKeyConstraint(["profile_id"], ["profiles.id"], name=op.f("fk_alias_moves_profile_id_profiles")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_alias_moves_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_moves")),
    )
    op.create_index(
        op.f("ix_alias_moves_profile_id_alias_id"), "alias_moves", ["profile_id", "alias", "id"], unique=False
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("subject_id", sa.String(length=200), nullable=False),
        sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_audit_log_key_id_api_keys")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_audit_log_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index(op.f("ix_audit_log_tenant_id_id"), "audit_log", ["tenant_id", "id"], unique=False)
    op.create_table(
        "profile_versions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("profile_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "pending",
                "ready",
                "failed",
                "archived",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("base_model_id", sa.Uuid(), nullable=True),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("fit_config", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("layers", postgresql.ARRAY(sa.Integer()), nullable=True),
        sa.Column("embedding_layer", sa.Integer(), nullable=True),
        sa.Column("diagnostics", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("quality", sa.String(length=16), nullable=True),
        sa.Column("quality_reasons", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("promote", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("quality IN ('good', 'weak')", name=op.f("ck_profile_versions_quality_known")),
        sa.CheckConstraint(
            "state <> 'ready' OR (sha256 IS NOT NULL AND quality IS NOT NULL AND ready_at IS NOT NULL"
            " AND base_model_id IS NOT NULL AND layers IS NOT NULL)",
            name=op.f("ck_profile_versions_ready_is_complete"),
        ),
        sa.CheckConstraint("number > 0", name=op.f("ck_profile_versions_number_positive")),
        sa.ForeignKeyConstraint(
            ["base_model_id"], ["base_models.id"], name=op.f("fk_profile_versions_base_model_id_base_models")
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["profile_versions.id"], name=op.f("fk_profile_versions_parent_id_profile_versions")
        ),
        sa.ForeignKeyConstraint(["profile_id"], ["profiles.id"], name=op.f("fk_profile_versions_profile_id_profiles")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_profile_versions_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_profile_versions")),
        sa.UniqueConstraint("profile_id", "number", name=op.f("uq_profile_versions_profile_id_number")),
    )
    op.create_table(
        "usage",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("profile_id", sa.Uuid(), nullable=True),
        sa.Column("requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("fit_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["profile_id"], ["profiles.id"], name=op.f("fk_usage_profile_id_profiles")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_usage_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage")),
        sa.UniqueConstraint(
            "tenant_id",
            "day",
            "profile_id",
            name=op.f("uq_usage_tenant_id_day_profile_id"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_index(op.f("ix_usage_profile_id"), "usage", ["profile_id"], unique=False)
    op.create_table(
        "assignments",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("end_user", sa.String(length=200), nullable=False),
        sa.Column("profile_id", sa.Uuid(), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=True),
        sa.Column("version_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("alias IS NULL OR version_id IS NULL", name=op.f("ck_assignments_alias_or_version")),
        sa.ForeignKeyConstraint(["profile_id"], ["profiles.id"], name=op.f("fk_assignments_profile_id_profiles")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_assignments_tenant_id_tenants")),
        sa.ForeignKeyConstraint(
            ["version_id"], ["profile_versions.id"], name=op.f("fk_assignments_version_id_profile_versions")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "end_user", name=op.f("pk_assignments")),
    )
    op.create_index(op.f("ix_assignments_profile_id"), "assignments", ["profile_id"], unique=False)
    op.create_table(
        "directions",
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("layer", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("theta_help", VECTOR(), nullable=True),
        sa.Column("theta_harm", VECTOR(), nullable=True),
        sa.Column("theta", VECTOR(), nullable=True),
        sa.Column("tau", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_directions_tenant_id_tenants")),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["profile_versions.id"],
            name=op.f("fk_directions_version_id_profile_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("version_id", "layer", name=op.f("pk_directions")),
    )
    op.create_table(
        "fit_queries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("preferred", sa.Text(), nullable=True),
        sa.Column("dispreferred", sa.Text(), nullable=True),
        sa.Column(
            "source",
            sa.Enum(
                "given", "bank", "invented", "pair", name="source", native_enum=False, create_constraint=True, length=16
            ),
            nullable=False,
        ),
        sa.Column("embedding", VECTOR(), nullable=True),
        sa.Column("embedding_sketch", VECTOR(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_fit_queries_tenant_id_tenants")),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["profile_versions.id"],
            name=op.f("fk_fit_queries_version_id_profile_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fit_queries")),
        sa.UniqueConstraint("version_id", "position", name=op.f("uq_fit_queries_version_id_position")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("profile_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "queued",
                "running",
                "succeeded",
                "failed",
                "cancelled",
                name="status",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("stage", sa.String(length=32), nullable=True),
        sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("run_after", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sends", sa.Integer(), nullable=False),
        sa.Column("event_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(status = 'running') = (lease_until IS NOT NULL)", name=op.f("ck_jobs_lease_iff_running")),
        sa.CheckConstraint(
            "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name=op.f("ck_jobs_finished_at_iff_finished"),
        ),
        sa.ForeignKeyConstraint(["profile_id"], ["profiles.id"], name=op.f("fk_jobs_profile_id_profiles")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_jobs_tenant_id_tenants")),
        sa.ForeignKeyConstraint(
            ["version_id"], ["profile_versions.id"], name=op.f("fk_jobs_version_id_profile_versions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("version_id", name=op.f("uq_jobs_version_id")),
    )
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["status", "lease_until"],
        unique=False,
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.create_index(op.f("ix_jobs_profile_id"), "jobs", ["profile_id"], unique=False)
    op.create_index(op.f("ix_jobs_tenant_id_id"), "jobs", ["tenant_id", "id"], unique=False)
    op.create_table(
        "profile_aliases",
        sa.Column("profile_id", sa.Uuid(), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("weight > 0", name=op.f("ck_profile_aliases_weight_positive")),
        sa.ForeignKeyConstraint(["profile_id"], ["profiles.id"], name=op.f("fk_profile_aliases_profile_id_profiles")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_profile_aliases_tenant_id_tenants")),
        sa.ForeignKeyConstraint(
            ["version_id"], ["profile_versions.id"], name=op.f("fk_profile_aliases_version_id_profile_versions")
        ),
        sa.PrimaryKeyConstraint("profile_id", "alias", "version_id", name=op.f("pk_profile_aliases")),
    )
    op.create_table(
        "job_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id_jobs"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_job_events_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_events")),
    )
    op.create_index(op.f("ix_job_events_job_id_id"), "job_events", ["job_id", "id"], unique=False)
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_outbox_job_id_jobs"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_outbox_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("job_id", name=op.f("uq_outbox_job_id")),
    )
    op.create_table(
        "pair_representations",
        sa.Column("query_id", sa.Uuid(), nullable=False),
        sa.Column("layer", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("help", sa.LargeBinary(), nullable=True),
        sa.Column("harm", sa.LargeBinary(), nullable=True),
        sa.Column("plain", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["query_id"],
            ["fit_queries.id"],
            name=op.f("fk_pair_representations_query_id_fit_queries"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_pair_representations_tenant_id_tenants")),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["profile_versions.id"],
            name=op.f("fk_pair_representations_version_id_profile_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("query_id", "layer", name=op.f("pk_pair_representations")),
    )
    op.create_index(op.f("ix_pair_representations_version_id"), "pair_representations", ["version_id"], unique=False)
    op.create_table(
        "preference_pairs",
        sa.Column("query_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("help_characteristics", sa.Text(), nullable=True),
        sa.Column("harm_characteristics", sa.Text(), nullable=True),
        sa.Column("help_response", sa.Text(), nullable=True),
        sa.Column("harm_response", sa.Text(), nullable=True),
        sa.Column("dropped", sa.String(length=200), nullable=True),
        sa.ForeignKeyConstraint(
            ["query_id"], ["fit_queries.id"], name=op.f("fk_preference_pairs_query_id_fit_queries"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_preference_pairs_tenant_id_tenants")),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["profile_versions.id"],
            name=op.f("fk_preference_pairs_version_id_profile_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("query_id", name=op.f("pk_preference_pairs")),
    )
    op.create_index(op.f("ix_preference_pairs_version_id"), "preference_pairs", ["version_id"], unique=False)
    # Never out of line: the whole point of the sketch is to be read without touching TOAST.
    op.execute("ALTER TABLE fit_queries ALTER COLUMN embedding_sketch SET STORAGE PLAIN")
    # Never compressed: the attempt costs time and float32 numbers do not shrink.
    for column in ("help", "harm", "plain"):
        op.execute(f"ALTER TABLE pair_representations ALTER COLUMN {column} SET STORAGE EXTERNAL")
    op.execute(_KEEP_READY_VERSION)
    op.execute(_KEEP_READY_CONTENT)
    op.execute(_KEEP_ROW)
    op.execute(
        "CREATE TRIGGER keep_ready BEFORE UPDATE OR DELETE ON profile_versions "
        "FOR EACH ROW EXECUTE FUNCTION keep_ready_version()"
    )
    for table in ("fit_queries", "preference_pairs", "pair_representations", "directions"):
        op.execute(
            f"CREATE TRIGGER keep_ready BEFORE INSERT OR UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION keep_ready_content()"
        )
    op.execute("CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON audit_log FOR EACH ROW EXECUTE FUNCTION keep_row()")


def downgrade() -> None:
    op.drop_index(op.f("ix_preference_pairs_version_id"), table_name="preference_pairs")
    op.drop_table("preference_pairs")
    op.drop_index(op.f("ix_pair_representations_version_id"), table_name="pair_representations")
    op.drop_table("pair_representations")
    op.drop_table("outbox")
    op.drop_index(op.f("ix_job_events_job_id_id"), table_name="job_events")
    op.drop_table("job_events")
    op.drop_table("profile_aliases")
    op.drop_index(op.f("ix_jobs_tenant_id_id"), table_name="jobs")
    op.drop_index(op.f("ix_jobs_profile_id"), table_name="jobs")
    op.drop_index("ix_jobs_open", table_name="jobs", postgresql_where=sa.text("status IN ('queued', 'running')"))
    op.drop_table("jobs")
    op.drop_table("fit_queries")
    op.drop_table("directions")
    op.drop_index(op.f("ix_assignments_profile_id"), table_name="assignments")
    op.drop_table("assignments")
    op.drop_index(op.f("ix_usage_profile_id"), table_name="usage")
    op.drop_table("usage")
    op.drop_table("profile_versions")
    op.drop_index(op.f("ix_audit_log_tenant_id_id"), table_name="audit_log")
    op.drop_table("audit_log")
    op.drop_index(op.f("ix_alias_moves_profile_id_alias_id"), table_name="alias_moves")
    op.drop_table("alias_moves")
    op.drop_index("uq_profiles_live_name", table_name="profiles", postgresql_where=sa.text("archived_at IS NULL"))
    op.drop_index(op.f("ix_profiles_tenant_id_id"), table_name="profiles")
    op.drop_table("profiles")
    op.drop_index(op.f("ix_idempotency_keys_created_at"), table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
    op.drop_index(op.f("ix_api_keys_tenant_id"), table_name="api_keys")
    op.drop_table("api_keys")
    op.drop_table("tenants")
    op.drop_index(op.f("ix_base_models_name"), table_name="base_models")
    op.drop_table("base_models")
    op.execute("DROP FUNCTION keep_ready_version, keep_ready_content, keep_row")
