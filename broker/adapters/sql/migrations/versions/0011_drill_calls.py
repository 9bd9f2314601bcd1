"""Drills of all brokers together."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of drills under way."""
    op.create_table(
        "drill_calls",
        sa.Column("canary", sa.String(64), primary_key=True),
        sa.Column("realm", sa.String(128), nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("hold_ms", sa.BigInteger, nullable=False),
        sa.Column("called_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "drill_parts",
        sa.Column("canary", sa.String(64), nullable=False),
        sa.Column("broker", sa.String(64), nullable=False),
        sa.Column("part", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("canary", "broker"),
    )
