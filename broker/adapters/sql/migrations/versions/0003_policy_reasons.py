"""Why a policy was applied."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keep a reason with each policy; of those applied before, none is known."""
    op.add_column("policies", sa.Column("reason", sa.Text, nullable=False, server_default=""))
