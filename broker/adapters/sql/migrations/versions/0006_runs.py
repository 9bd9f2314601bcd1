"""Whom runs are for, their keys and their ends; what limits are counted by."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add to the runs, which stay as they are, and make the counts, which begin at nothing."""
    for column in (
        sa.Column("is_lapsed", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("user", sa.String(128)),
        sa.Column("workload", sa.String(128)),
        sa.Column("environment", sa.String(128)),
        sa.Column("grants", sa.Text, nullable=False, server_default="[]"),
        sa.Column("key", sa.Text),
        sa.Column("approval", sa.String(64)),
        sa.Column("tokens", sa.BigInteger, nullable=False, server_default="0"),
    ):
        op.add_column("runs", column)
    is_open = sa.text("NOT is_closed")
    op.create_index("runs_open", "runs", ["lease_ends_at_ms"], sqlite_where=is_open, postgresql_where=is_open)
    op.create_table(
        "counts",
        sa.Column("idx", sa.BigInteger, nullable=False),
        sa.Column("part", sa.Integer, nullable=False),
        sa.Column("scope", sa.String(512), nullable=False),
        sa.Column("ends_at_ms", sa.BigInteger, nullable=False),
        sa.Column("run", sa.String(64)),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("keep_until_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("idx", "part"),
        sqlite_with_rowid=False,
    )
    op.create_index("counts_rate", "counts", ["scope", "at_ms"])
    op.create_index("counts_live", "counts", ["scope", "ends_at_ms"])
    of_runs = sa.text("run IS NOT NULL")
    op.create_index("counts_run", "counts", ["run"], sqlite_where=of_runs, postgresql_where=of_runs)
    op.create_index("counts_keep", "counts", ["keep_until_ms"])
