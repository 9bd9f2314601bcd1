"""Denials, for a while."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of denials."""
    op.create_table(
        "denials",
        sa.Column("partner", sa.String(128), nullable=False),
        sa.Column("principal", sa.String(512), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("partner", "principal", "request_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("denials_partner", "denials", ["partner", "at_ms"])
    op.create_index("denials_request", "denials", ["request_id"])
