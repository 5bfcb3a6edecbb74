"""Format 3: API keys, and a counter of their changes."""

import sqlalchemy as sa
from alembic import op

revision = "v3"
down_revision = "v2"


def upgrade() -> None:
    """Add a column and a table; nothing that is there changes but the format's number."""
    op.add_column("meta", sa.Column("keys_generation", sa.BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "keys",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scopes", sa.String(64), nullable=False),
        sa.Column("prefix", sa.String(80)),
        sa.Column("created_s", sa.BigInteger, nullable=False),
        sa.Column("expires_s", sa.BigInteger),
        sa.Column("revoked_s", sa.BigInteger),
        sa.Column("rows_per_minute", sa.Integer),
        sa.Column("note", sa.String(128), nullable=False),
    )
    op.execute("UPDATE meta SET format_version = 3")
