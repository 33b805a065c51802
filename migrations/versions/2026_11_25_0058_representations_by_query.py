"""Representations by query: one value a side with all layers, in place of one a layer.

The bytes stay what they are, one layer's after the other's. `pair_representations` becomes a view of the old form, with
triggers, so that the previous release's code reads, writes and deletes as before; a later release drops it.

All rows are written once more, so the disk must hold them twice until the old table goes at the end. Meanwhile reads go
on, and fits wait to store theirs.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_25_0058"
down_revision = "2026_11_24_0442"
branch_labels = None
depends_on = None

_SIDES = ("help", "harm", "plain")

_BY_LAYER = """
CREATE VIEW pair_representations AS
SELECT q.query_id, u.layer, q.tenant_id, q.version_id, {sides}
FROM query_representations q, unnest(q.layers) WITH ORDINALITY AS u (layer, i)
""".format(
    sides=", ".join(
        f"substring(q.{side} FROM (u.i::int - 1) * (length(q.{side}) / cardinality(q.layers)) + 1"
        f" FOR length(q.{side}) / cardinality(q.layers)) AS {side}"
        for side in _SIDES
    )
)

# The previous release writes a query's layers in ascending order, and deletes all of a query or none.
_WRITE_BY_LAYER = """
CREATE FUNCTION write_pair_representation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM query_representations WHERE query_id = OLD.query_id;
        RETURN OLD;
    END IF;
    INSERT INTO query_representations AS q (query_id, tenant_id, version_id, layers, help, harm, plain)
    VALUES (NEW.query_id, NEW.tenant_id, NEW.version_id, ARRAY[NEW.layer], NEW.help, NEW.harm, NEW.plain)
    ON CONFLICT (query_id) DO UPDATE SET
        layers = q.layers || excluded.layers,
        help = q.help || excluded.help,
        harm = q.harm || excluded.harm,
        plain = q.plain || excluded.plain
    WHERE q.layers[cardinality(q.layers)] < NEW.layer;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'layer % of query % is there, or comes out of order', NEW.layer, NEW.query_id
            USING ERRCODE = 'unique_violation';
    END IF;
    RETURN NEW;
END $$
"""


def upgrade() -> None:
    op.execute("LOCK TABLE pair_representations IN EXCLUSIVE MODE")  # reads go on
    _create("query_representations", by_layer=False)
    values = ", ".join(f"string_agg({side}, ''::bytea ORDER BY layer)" for side in _SIDES)
    # Sorted by its key, the rows of one query are one group after the other: memory holds one at a time.
    op.execute(
        "INSERT INTO query_representations (query_id, tenant_id, version_id, layers, help, harm, plain)"
        f" SELECT query_id, tenant_id, version_id, array_agg(layer ORDER BY layer), {values}"
        " FROM pair_representations GROUP BY query_id, tenant_id, version_id"
    )
    _keep_ready("query_representations")
    op.drop_table("pair_representations")
    create_view()


def downgrade() -> None:
    op.execute("LOCK TABLE query_representations IN EXCLUSIVE MODE")
    op.execute("ALTER VIEW pair_representations RENAME TO representations_by_layer")
    _create("pair_representations", by_layer=True)
    columns = "query_id, layer, tenant_id, version_id, help, harm, plain"
    op.execute(f"INSERT INTO pair_representations ({columns}) SELECT {columns} FROM representations_by_layer")
    _keep_ready("pair_representations")
    op.execute("DROP VIEW representations_by_layer")
    op.execute("DROP FUNCTION write_pair_representation()")
    op.drop_table("query_representations")


def create_view() -> None:
    """The old form as a view that can be written; also for the downgrade of the revision that drops it."""
    op.execute(_BY_LAYER)
    op.execute(_WRITE_BY_LAYER)
    op.execute(
        "CREATE TRIGGER write INSTEAD OF INSERT OR DELETE ON pair_representations "
        "FOR EACH ROW EXECUTE FUNCTION write_pair_representation()"
    )


def _create(table: str, *, by_layer: bool) -> None:
    key = ["query_id", "layer"] if by_layer else ["query_id"]
    layers = (
        sa.Column("layer", sa.Integer(), autoincrement=False, nullable=False)
        if by_layer
        else sa.Column("layers", sa.ARRAY(sa.Integer()), nullable=False)
    )
    op.create_table(
        table,
        sa.Column("query_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        layers,
        *(sa.Column(side, sa.LargeBinary(), nullable=True) for side in _SIDES),
        sa.ForeignKeyConstraint(
            ["query_id"], ["fit_queries.id"], name=op.f(f"fk_{table}_query_id_fit_queries"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f(f"fk_{table}_tenant_id_tenants")),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["profile_versions.id"],
            name=op.f(f"fk_{table}_version_id_profile_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{table}")),
    )
    op.create_index(op.f(f"ix_{table}_version_id"), table, ["version_id"], unique=False)
    for side in _SIDES:  # never compressed: the attempt costs time, and such numbers do not shrink
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {side} SET STORAGE EXTERNAL")


def _keep_ready(table: str) -> None:
    """After the rows are there, for it refuses those of ready versions."""
    op.execute(
        f"CREATE TRIGGER keep_ready BEFORE INSERT OR UPDATE OR DELETE ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION keep_ready_content()"
    )
