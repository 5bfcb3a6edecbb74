"""Format 1: names, versions, the active one of each, and one generation counter."""

import sqlalchemy as sa
from alembic import op

from server.tables import Name

revision = "v1"
down_revision = None


def upgrade() -> None:
    """Make the three tables and the row of the counter."""
    meta = op.create_table(
        "meta",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("format_version", sa.Integer, nullable=False),
    )
    op.bulk_insert(meta, [{"id": 1, "generation": 0, "format_version": 1}])
    op.create_table(
        "adapters",
        sa.Column("name", Name, primary_key=True),
        sa.Column("active_version", sa.Integer),
        sa.Column("changed_generation", sa.BigInteger, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("name", Name, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
    )
    op.create_index("ix_versions_sha256", "versions", ["sha256"])
