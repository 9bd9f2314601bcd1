"""That the ledger was restored, as each realm's root says it."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of restorations."""
    op.create_table(
        "restorations",
        sa.Column("idx", sa.BigInteger, nullable=False),
        sa.Column("realm", sa.String(128), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("idx", "realm"),
        sqlite_with_rowid=False,
    )
