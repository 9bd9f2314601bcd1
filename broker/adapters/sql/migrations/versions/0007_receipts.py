"""Keys that verifiers sign receipts with, and up to where their receipts are written."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of receipt keys."""
    op.create_table(
        "receipt_keys",
        sa.Column("kid", sa.String(43), primary_key=True),
        sa.Column("realm", sa.String(128), nullable=False),
        sa.Column("verifier", sa.String(512), nullable=False),
        sa.Column("point", sa.LargeBinary(65), nullable=False),
        sa.Column("idx", sa.BigInteger, nullable=False),
        sa.Column("through", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
