"""Completions, drills, and who ever listened."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of proofs beside the first ones, whose rows stay as they are."""
    big = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    # So that the live tokens a revocation hits are found among millions of other entries.
    kind = '"kind":"token-minted"'
    op.create_index(
        "ledger_minted",
        "ledger",
        ["idx"],
        sqlite_where=sa.text(f"instr(entry, X'{kind.encode().hex()}') > 0"),
        postgresql_where=sa.text(f"strpos(encode(entry, 'escape'), '{kind}') > 0"),
    )
    op.create_table(
        "completions",
        sa.Column("revocation", big, primary_key=True, autoincrement=False),
        sa.Column("first_idx", sa.BigInteger, nullable=False),
        sa.Column("realms", sa.Text, nullable=False),
        sa.Column("lease_ms", sa.Integer, nullable=False),
        sa.Column("entry_idx", sa.BigInteger),
        sa.Column("document", sa.LargeBinary),
    )
    waits = sa.text("entry_idx IS NULL")
    op.create_index("completions_awaited", "completions", ["revocation"], sqlite_where=waits, postgresql_where=waits)
    op.create_table(
        "drills",
        sa.Column("idx", big, primary_key=True, autoincrement=False),
        sa.Column("realm", sa.String(128), nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
    )
    op.create_index("drills_realm", "drills", ["realm", "idx"])
    op.create_table(
        "drill_schedules",
        sa.Column("realm", sa.String(128), primary_key=True),
        sa.Column("every_s", sa.Integer, nullable=False),
    )
    op.create_table(
        "verifiers",
        sa.Column("verifier", sa.String(512), nullable=False),
        sa.Column("realm", sa.String(128), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("address", sa.String(128), nullable=False),
        sa.Column("head", sa.BigInteger, nullable=False),
        sa.Column("seen_at_ms", sa.BigInteger, nullable=False),
        sa.Column("is_present", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("realm", "verifier"),
        sqlite_with_rowid=False,
    )
