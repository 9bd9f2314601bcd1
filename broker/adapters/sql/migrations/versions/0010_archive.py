"""Below which index bodies of entries are in the archive."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the mark to the head."""
    op.add_column("head", sa.Column("archived", sa.BigInteger, nullable=False, server_default="0"))
