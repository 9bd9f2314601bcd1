"""Approvals, and who voted."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of approvals beside the others, whose rows stay as they are."""
    op.create_table(
        "approvals",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("idx", sa.BigInteger, nullable=False),
        sa.Column("partner", sa.String(128), nullable=False),
        sa.Column("approvers", sa.String(128), nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sa.Column("closes_at_ms", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.String(16)),
        sa.Column("ended_at_ms", sa.BigInteger),
        sa.Column("spent_on", sa.String(64)),
    )
    op.create_index("approvals_partner", "approvals", ["partner", "idx"])
    op.create_index("approvals_approvers", "approvals", ["approvers", "idx"])
    op.create_table(
        "approval_votes",
        sa.Column("approval", sa.String(64), nullable=False),
        sa.Column("person", sa.String(512), nullable=False),
        sa.Column("principal", sa.String(512), nullable=False),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("login_at_ms", sa.BigInteger, nullable=False),
        sa.Column("idx", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("approval", "person"),
        sqlite_with_rowid=False,
    )
