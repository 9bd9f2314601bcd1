"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables as they were at the first release; later changes are migrations of their own."""
    big = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("incarnation", sa.String(32), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("policy_version", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "ledger",
        sa.Column("idx", big, primary_key=True, autoincrement=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
    )
    op.create_table(
        "policies",
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("idx", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "blocks",
        sa.Column("selector", sa.String(2048), primary_key=True),
        sa.Column("idx", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "revocations",
        sa.Column("idx", big, primary_key=True, autoincrement=False),
        sa.Column("selector", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("keep_until_ms", sa.BigInteger, nullable=False),
        sa.Column("kid", sa.String(43)),
    )
    is_key = sa.text("kid IS NOT NULL")
    op.create_index("revocations_kid", "revocations", ["kid"], sqlite_where=is_key, postgresql_where=is_key)
    op.create_index("revocations_keep", "revocations", ["keep_until_ms"])
    op.create_table(
        "certificates",
        sa.Column("idx", big, primary_key=True, autoincrement=False),
        sa.Column("realm", sa.String(128), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("kid", sa.String(43), nullable=False),
        sa.Column("certificate", sa.Text, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("realm", sa.String(128), nullable=False),
        sa.Column("partner", sa.String(128), nullable=False),
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("opened_by", sa.Text, nullable=False),
        sa.Column("opened_at_ms", sa.BigInteger, nullable=False),
        sa.Column("lease_s", sa.Integer, nullable=False),
        sa.Column("lease_ends_at_ms", sa.BigInteger, nullable=False),
        sa.Column("is_closed", sa.Boolean, nullable=False),
    )
    op.create_index("runs_partner", "runs", ["partner", "opened_at_ms"])
    op.create_table(
        "requests",
        sa.Column("principal", sa.String(512), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("first_idx", sa.BigInteger, nullable=False),
        sa.Column("entries", sa.Integer, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("principal", "request_id"),
        sqlite_with_rowid=False,
    )
