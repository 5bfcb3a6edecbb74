"""Format 4: how much each name is called, for a start to know what to read first."""

import sqlalchemy as sa
from alembic import op

revision = "v4"
down_revision = "v3"


def upgrade() -> None:
    """Add two columns; nothing was called yet."""
    op.add_column("adapters", sa.Column("heat", sa.Float, nullable=False, server_default="0"))
    op.add_column("adapters", sa.Column("heat_at_s", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("UPDATE meta SET format_version = 4")
