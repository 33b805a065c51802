"""All tables, the triggers that make ready versions, base models and the audit log immutable, and the policies that
show a transaction its tenant's rows only.

Constraints and indexes get their names from `profiles.models.base.NAMING`.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import VECTOR
from sqlalchemy.dialects.postgresql import JSONB

revision = "2026_11_27_2300"
down_revision = None

# The only change of a ready version is to archived. An archived version may be deleted.
_KEEP_READY_VERSION = """
CREATE FUNCTION keep_ready_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.state <> 'ready' THEN RETURN OLD; END IF;
    IF OLD.state = 'ready' AND NEW.state = 'archived' THEN
        OLD.state := NEW.state;
        OLD.archived_at := NEW.archived_at;
    END IF;
    IF OLD.state IN ('ready', 'archived') AND NEW IS DISTINCT FROM OLD THEN
        RAISE integrity_constraint_violation USING MESSAGE = format('version %s is %s: immutable', OLD.id, OLD.state);
    END IF;
    RETURN NEW;
END $$
"""

# The same for the content of a version. NEW is null on DELETE, OLD on INSERT. The schema is named here and below,
# because a temporary table of the same name would come first.
_KEEP_READY_CONTENT = """
CREATE FUNCTION keep_ready_content() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE kept uuid;
BEGIN
    SELECT id INTO kept FROM public.profile_versions
    WHERE id IN (OLD.version_id, NEW.version_id) AND (state = 'ready' OR state = 'archived' AND TG_OP <> 'DELETE');
    IF FOUND THEN
        RAISE integrity_constraint_violation USING MESSAGE = format('the content of version %s is immutable', kept);
    END IF;
    IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
    RETURN NEW;
END $$
"""

# Chains an audit entry to the tenant's entry before it. The lock lasts until the transaction ends, so that no two
# entries follow the same one. `profiles.service.audit` computes the digests again.
_CHAIN_ENTRY = """
CREATE FUNCTION chain_audit_entry() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last record;
BEGIN
    PERFORM pg_advisory_xact_lock(420261123, hashtext(NEW.tenant_id::text));
    SELECT number, sha256 INTO last FROM public.audit_log WHERE tenant_id = NEW.tenant_id ORDER BY number DESC LIMIT 1;
    NEW.number := coalesce(last.number, 0) + 1;
    NEW.address := nullif(current_setting('alignez.address', true), '');
    NEW.request_id := nullif(current_setting('alignez.request', true), '');
    NEW.created_at := clock_timestamp();
    NEW.sha256 := sha256(coalesce(last.sha256, '') || convert_to(concat_ws(E'\\x1f',
        NEW.number, NEW.tenant_id, coalesce(NEW.key_id::text, ''), NEW.action, NEW.subject, NEW.subject_id,
        NEW.details::text, coalesce(NEW.address, ''), coalesce(NEW.request_id, ''),
        to_char(NEW.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')), 'UTF8'));
    RETURN NEW;
END $$
"""

# What a transaction may see: the rows of the tenant in `alignez.tenant`, or all rows if that is "platform". In
# parentheses with SELECT, so that Postgres reads the setting once for a statement and not once for a row.
_POLICY = """
CREATE POLICY of_tenant ON {table} USING (
    (SELECT current_setting('alignez.tenant', true)) = 'platform'
    OR {column} = (SELECT nullif(nullif(current_setting('alignez.tenant', true), ''), 'platform')::uuid)
)
"""

# The role of the processes. Policies do not hold for the tables' owner, who migrates them and makes backups. The role
# exists already if the administrator made it.
_MAKE_ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'alignez_app') THEN CREATE ROLE alignez_app NOLOGIN; END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- made by another migration at the same time
END $$
"""

_REFUSE_CHANGE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE integrity_constraint_violation USING MESSAGE = format('%s of immutable rows of %s', TG_OP, TG_TABLE_NAME);
END $$
"""

_TENANT_TABLES = (
    "tenants", "api_keys", "idempotency_keys", "audit_log", "profiles", "usage", "profile_versions", "profile_aliases",
    "alias_moves", "assignments", "fit_queries", "preference_pairs", "query_representations", "version_edits", "jobs",
    "job_texts", "job_events", "outbox", "evaluations",
)  # fmt: skip


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _create_accounts()
    _create_profiles()
    _create_fits()
    _create_jobs()
    _create_triggers()
    _create_policies()


def downgrade() -> None:
    op.execute(
        "DROP TABLE evaluations, outbox, job_events, job_texts, jobs, version_edits, query_representations,"
        " preference_pairs, fit_queries, assignments, alias_moves, profile_aliases, profile_versions, usage, profiles,"
        " audit_log, idempotency_keys, api_keys, tenants, base_models"
    )
    op.execute("DROP FUNCTION keep_ready_version, keep_ready_content, refuse_change, chain_audit_entry")


def _create_accounts() -> None:
    op.create_table(
        "base_models",
        _id(),
        sa.Column("name", sa.String(200), nullable=False, index=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("revision", sa.String(100)),
        sa.Column("fingerprint", sa.String(64), nullable=False, unique=True),
        *_columns(sa.Integer(), "n_layers", "hidden_size", "context_length", nullable=False),
        sa.Column("prompt_format", sa.String(16), nullable=False),
        *_now("created_at", "seen_at"),
    )
    op.create_table(
        "tenants",
        _id(),
        sa.Column("name", sa.String(100), nullable=False, unique=True),
        sa.Column("max_queued_jobs", sa.Integer()),
        *_now("created_at"),
        sa.CheckConstraint("max_queued_jobs > 0", name="max_queued_jobs_positive"),
    )
    op.create_table(
        "api_keys",
        _id(),
        _tenant(index=True),
        sa.Column("name", sa.String(100), nullable=False),
        _one_of("role", "operator", "admin", "member", "inference"),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("profile_id", sa.Uuid(), index=True),
        sa.Column("end_user", sa.String(200)),
        sa.Column("last_used_from", sa.String(64)),
        *_time("expires_at", "revoked_at", "last_used_at"),
        *_now("created_at"),
        sa.UniqueConstraint("id", "tenant_id"),
        sa.CheckConstraint(
            "role = 'inference' OR (profile_id IS NULL AND end_user IS NULL)", name="bound_for_inference"
        ),
    )
    op.create_table(
        "idempotency_keys",
        _tenant(primary_key=True),
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("status_code", sa.Integer()),
        sa.Column("response", JSONB()),
        *_now("created_at"),
        sa.Index(None, "created_at"),
    )
    op.create_table(
        "audit_log",
        _serial(),
        _tenant(),
        _reference("key_id", "api_keys", nullable=True),
        *_columns(sa.String(64), "action", "subject", nullable=False),
        sa.Column("subject_id", sa.String(200), nullable=False),
        sa.Column("details", JSONB(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("address", sa.String(64)),
        sa.Column("request_id", sa.String(128)),
        *_now("created_at"),
        sa.Index(None, "tenant_id", "id"),
        sa.UniqueConstraint("tenant_id", "number"),
    )


def _create_profiles() -> None:
    live = "archived_at IS NULL"
    op.create_table(
        "profiles",
        _id(),
        _tenant(),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("description", sa.Text()),
        _reference("base_model_id", "base_models", nullable=True),
        *_now("created_at", "updated_at"),
        *_time("archived_at"),
        sa.UniqueConstraint("tenant_id", "id"),
        sa.Index("uq_profiles_live_name", "tenant_id", "name", unique=True, postgresql_where=sa.text(live)),
    )
    op.create_foreign_key(None, "api_keys", "profiles", ["profile_id", "tenant_id"], ["id", "tenant_id"])
    counters = ("requests", "prompt_tokens", "completion_tokens", "fit_tokens")
    op.create_table(
        "usage",
        _serial(),
        _tenant(),
        sa.Column("day", sa.Date(), nullable=False),
        *_of_tenant("profile_id", "profiles", nullable=True, index=True),
        *_columns(sa.BigInteger(), *counters, server_default="0", nullable=False),
        sa.UniqueConstraint("tenant_id", "day", "profile_id", postgresql_nulls_not_distinct=True),
    )
    op.create_table(
        "profile_versions",
        _id(),
        _tenant(),
        *_of_tenant("profile_id", "profiles"),
        sa.Column("number", sa.Integer(), nullable=False),
        _one_of("state", "pending", "ready", "failed", "archived"),
        *_of_tenant("parent_id", "profile_versions", nullable=True, index=True),
        _reference("base_model_id", "base_models", nullable=True),
        sa.Column("spec", JSONB(), nullable=False),
        *_columns(sa.String(16), "method", "quality"),
        sa.Column("layers", sa.ARRAY(sa.Integer())),
        *_columns(sa.Integer(), "steps", "embedding_layer"),
        sa.Column("positions", sa.String(16), server_default="answer", nullable=False),
        sa.Column("lookup", sa.String(16), server_default="none", nullable=False),
        *_columns(JSONB(), "fit_config", "prefix", "diagnostics", "quality_reasons"),
        sa.Column("sha256", sa.String(64)),
        sa.Column("promote", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        *_now("created_at"),
        *_time("ready_at", "archived_at"),
        sa.UniqueConstraint("profile_id", "number"),
        sa.UniqueConstraint("id", "tenant_id"),
        sa.CheckConstraint("number > 0", name="number_positive"),
        sa.CheckConstraint("quality IN ('good', 'weak')", name="quality_known"),
        sa.CheckConstraint("positions IN ('answer', 'all')", name="positions_known"),
        sa.CheckConstraint("lookup IN ('none', 'groups', 'neighbors')", name="lookup_known"),
        sa.CheckConstraint(
            "state <> 'ready' OR (sha256 IS NOT NULL AND quality IS NOT NULL AND ready_at IS NOT NULL"
            " AND base_model_id IS NOT NULL AND layers IS NOT NULL AND method IS NOT NULL)",
            name="ready_is_complete",
        ),
    )
    op.create_table(
        "profile_aliases",
        *_of_tenant("profile_id", "profiles", primary_key=True),
        sa.Column("alias", sa.String(64), primary_key=True),
        *_of_tenant("version_id", "profile_versions", primary_key=True, index=True),
        _tenant(),
        sa.Column("weight", sa.Float(), nullable=False),
        *_now("created_at"),
        sa.CheckConstraint("weight > 0", name="weight_positive"),
    )
    op.create_table(
        "alias_moves",
        _serial(),
        _tenant(),
        *_of_tenant("profile_id", "profiles"),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("targets", JSONB(), nullable=False),
        *_of_tenant("key_id", "api_keys", nullable=True),
        *_now("created_at"),
        *_time("undone_at"),
        sa.Index(None, "profile_id", "alias", "id"),
    )
    op.create_table(
        "assignments",
        _tenant(primary_key=True),
        sa.Column("end_user", sa.String(200), primary_key=True),
        *_of_tenant("profile_id", "profiles", index=True),
        sa.Column("alias", sa.String(64)),
        *_of_tenant("version_id", "profile_versions", nullable=True, index=True),
        *_now("created_at", "updated_at"),
        sa.CheckConstraint("alias IS NULL OR version_id IS NULL", name="alias_or_version"),
    )


def _create_fits() -> None:
    op.create_table(
        "fit_queries",
        _id(),
        _tenant(),
        *_version(),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        *_columns(sa.Text(), "preferred", "dispreferred"),
        _one_of("source", "given", "bank", "invented", "pair"),
        _one_of("split", "fit", "tune", "held_out", "unused", server_default="fit"),
        sa.Column("persona_group", sa.Integer(), server_default="0", nullable=False),
        *_columns(VECTOR(), "embedding", "embedding_sketch"),
        sa.UniqueConstraint("version_id", "position"),
        sa.UniqueConstraint("id", "version_id"),
    )
    # Always in line, because the search reads every sketch of a version, and a TOAST look-up for each is slow.
    op.execute("ALTER TABLE fit_queries ALTER COLUMN embedding_sketch SET STORAGE PLAIN")
    op.create_table(
        "preference_pairs",
        *_query(),
        _tenant(),
        *_columns(sa.Text(), "help_characteristics", "harm_characteristics"),
        *_columns(sa.Text(), "help_response", "harm_response"),
        sa.Column("dropped", sa.String(200)),
    )
    op.create_table(
        "query_representations",
        *_query(),
        _tenant(),
        sa.Column("layers", sa.ARRAY(sa.Integer()), nullable=False),
        *_columns(sa.LargeBinary(), "help", "harm"),
    )
    op.create_table(
        "version_edits",
        *_version(primary_key=True),
        sa.Column("persona_group", sa.Integer(), autoincrement=False, primary_key=True),
        sa.Column("layer", sa.Integer(), autoincrement=False, primary_key=True),
        _tenant(),
        *_columns(sa.LargeBinary(), "u", "v", "c", nullable=False),
    )
    # Never compressed, because floating-point numbers compress badly and the attempt costs time.
    for table, columns in (("query_representations", ("help", "harm")), ("version_edits", ("u", "v"))):
        for column in columns:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")


def _create_jobs() -> None:
    finished = "status IN ('succeeded', 'failed', 'cancelled')"
    op.create_table(
        "jobs",
        _id(),
        _tenant(),
        *_of_tenant("profile_id", "profiles", index=True),
        *_of_tenant("version_id", "profile_versions", index=True),
        _one_of("kind", "fit", "evaluate", server_default="fit"),
        sa.Column("request", JSONB()),
        _one_of("status", "queued", "running", "succeeded", "failed", "cancelled"),
        sa.Column("stage", sa.String(32)),
        sa.Column("progress", JSONB(), nullable=False),
        *_columns(sa.Integer(), "attempt", "failures", "sends", nullable=False),
        sa.Column("worker", sa.String(200)),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.Text()),
        sa.Column("request_id", sa.String(128)),
        sa.Column("traceparent", sa.String(55)),
        *_now("created_at"),
        *_time("lease_until", "run_after", "cancel_requested_at", "sent_at", "event_at", "started_at", "finished_at"),
        sa.CheckConstraint("(status = 'running') = (lease_until IS NOT NULL)", name="lease_iff_running"),
        sa.CheckConstraint(f"({finished}) = (finished_at IS NOT NULL)", name="finished_at_iff_finished"),
        sa.UniqueConstraint("tenant_id", "id"),
        sa.Index("uq_jobs_fit_of_version", "version_id", unique=True, postgresql_where=sa.text("kind = 'fit'")),
        sa.Index("ix_jobs_unfinished", "tenant_id", postgresql_where=sa.text("finished_at IS NULL")),
        sa.Index("ix_jobs_open", "status", "lease_until", postgresql_where=sa.text("status IN ('queued', 'running')")),
    )
    op.create_table(
        "job_texts",
        *_of_tenant("job_id", "jobs", ondelete="CASCADE", primary_key=True),
        sa.Column("kind", sa.Text(), primary_key=True),
        sa.Column("position", sa.Integer(), autoincrement=False, primary_key=True),
        _tenant(),
        sa.Column("text", sa.Text(), nullable=False),
    )
    op.create_table(
        "job_events",
        _serial(),
        _tenant(),
        *_of_tenant("job_id", "jobs", ondelete="CASCADE"),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("payload", JSONB(), nullable=False),
        *_now("created_at"),
        sa.Index(None, "job_id", "id"),
    )
    op.create_table(
        "outbox",
        _serial(),
        _tenant(),
        *_of_tenant("job_id", "jobs", ondelete="CASCADE", unique=True),
        *_now("created_at"),
    )
    op.create_table(
        "evaluations",
        _id(),
        _tenant(),
        *_version(),
        *_of_tenant("job_id", "jobs", unique=True),
        sa.Column("judge", sa.Text(), nullable=False),
        sa.Column("quality", sa.String(16), nullable=False),
        *_columns(JSONB(), "reasons", "report", nullable=False),
        sa.Column("choice", JSONB()),
        *_now("created_at"),
        sa.CheckConstraint("quality IN ('good', 'weak')", name="quality_known"),
        sa.Index(None, "version_id", "id"),
    )


def _create_triggers() -> None:
    for function in (_KEEP_READY_VERSION, _KEEP_READY_CONTENT, _REFUSE_CHANGE, _CHAIN_ENTRY):
        op.execute(function)
    content = ("fit_queries", "preference_pairs", "query_representations", "version_edits")
    _trigger("keep_ready", "UPDATE OR DELETE", "profile_versions", "FOR EACH ROW", "keep_ready_version")
    for table in content:
        _trigger("keep_ready", "INSERT OR UPDATE OR DELETE", table, "FOR EACH ROW", "keep_ready_content")
    _trigger("keep_ready", "DELETE", "evaluations", "FOR EACH ROW", "keep_ready_content")
    _trigger("keep", "UPDATE", "evaluations", "FOR EACH ROW", "refuse_change")
    _trigger("keep", "UPDATE OR DELETE", "audit_log", "FOR EACH ROW", "refuse_change")
    _trigger("chain", "INSERT", "audit_log", "FOR EACH ROW", "chain_audit_entry")
    identity = ("id", "fingerprint", "n_layers", "hidden_size")
    before, after = (", ".join(f"{row}.{column}" for column in identity) for row in ("OLD", "NEW"))
    changed = f"FOR EACH ROW WHEN (({before}) IS DISTINCT FROM ({after}))"
    _trigger("keep_identity", "UPDATE", "base_models", changed, "refuse_change")
    for table in ("profile_versions", *content, "evaluations", "audit_log"):
        _trigger("keep_all", "TRUNCATE", table, "FOR EACH STATEMENT", "refuse_change")


def _create_policies() -> None:
    op.execute(_MAKE_ROLE)
    op.execute("GRANT USAGE ON SCHEMA public TO alignez_app")
    op.execute("GRANT SELECT ON alembic_version TO alignez_app")
    op.execute("GRANT SELECT, INSERT, UPDATE ON base_models TO alignez_app")
    op.execute("GRANT SELECT, INSERT ON audit_log TO alignez_app")
    op.execute("GRANT SELECT, INSERT, UPDATE ON tenants TO alignez_app")
    for table in _TENANT_TABLES:
        if table not in ("tenants", "audit_log"):
            op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO alignez_app")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(_POLICY.format(table=table, column="id" if table == "tenants" else "tenant_id"))


def _trigger(name: str, operations: str, table: str, each: str, function: str) -> None:
    op.execute(f"CREATE TRIGGER {name} BEFORE {operations} ON {table} {each} EXECUTE FUNCTION {function}()")


def _id() -> sa.Column[Any]:
    return sa.Column("id", sa.Uuid(), primary_key=True)


def _serial() -> sa.Column[Any]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=True), primary_key=True)


def _reference(name: str, table: str, ondelete: str | None = None, **options: Any) -> sa.Column[Any]:
    key = sa.ForeignKey(f"{table}.id", ondelete=ondelete)
    return sa.Column(name, sa.Uuid(), key, **{"nullable": False, **options})


def _tenant(**options: Any) -> sa.Column[Any]:
    return _reference("tenant_id", "tenants", **options)


def _of_tenant(
    name: str, table: str, ondelete: str | None = None, **options: Any
) -> tuple[sa.Column[Any], sa.ForeignKeyConstraint]:
    """A reference to a row of the same tenant."""
    key = sa.ForeignKeyConstraint([name, "tenant_id"], [f"{table}.id", f"{table}.tenant_id"], ondelete=ondelete)
    return sa.Column(name, sa.Uuid(), **{"nullable": False, **options}), key


def _version(**options: Any) -> tuple[sa.Column[Any], sa.ForeignKeyConstraint]:
    """The reference of a row to its version."""
    return _of_tenant("version_id", "profile_versions", ondelete="CASCADE", **options)


def _query() -> tuple[sa.Column[Any] | sa.ForeignKeyConstraint, ...]:
    """References to a query and its version, for a table with one row per query."""
    columns = ("query_id", "version_id")
    of_version = sa.ForeignKeyConstraint(columns, ["fit_queries.id", "fit_queries.version_id"], ondelete="CASCADE")
    return sa.Column("query_id", sa.Uuid(), primary_key=True), *_version(index=True), of_version


def _columns(kind: sa.types.TypeEngine[Any], *names: str, **options: Any) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, **options) for name in names]


def _time(*names: str) -> list[sa.Column[Any]]:
    return _columns(sa.DateTime(timezone=True), *names)


def _now(*names: str) -> list[sa.Column[Any]]:
    return _columns(sa.DateTime(timezone=True), *names, server_default=sa.text("now()"), nullable=False)


def _one_of(name: str, *values: str, server_default: str | None = None) -> sa.Column[Any]:
    """Text with a CHECK; a Postgres enum would need ALTER TYPE for each new value."""
    kind = sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=16)
    return sa.Column(name, kind, server_default=server_default, nullable=False)
