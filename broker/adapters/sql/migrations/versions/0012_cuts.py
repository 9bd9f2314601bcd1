"""Uses that were cut, for the completions of other brokers."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of cuts."""
    op.create_table(
        "cuts",
        sa.Column("revocation", sa.BigInteger, nullable=False),
        sa.Column("realm", sa.String(128), nullable=False),
        sa.Column("verifier", sa.String(512), nullable=False),
        sa.Column("broker", sa.String(64), nullable=False),
        sa.Column("uses", sa.BigInteger, nullable=False),
        sa.Column("keep_until_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("revocation", "realm", "verifier", "broker"),
        sqlite_with_rowid=False,
    )
