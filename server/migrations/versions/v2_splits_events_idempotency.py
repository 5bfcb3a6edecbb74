"""Format 2: splits, what a version is, the log of changes, and requests that may be repeated."""

import sqlalchemy as sa
from alembic import op

from server.tables import Name, Sequence

revision = "v2"
down_revision = "v1"


def upgrade() -> None:
    """Add columns and tables; nothing that is there changes but the format's number."""
    op.add_column("adapters", sa.Column("split", sa.Text))
    op.create_index("ix_adapters_changed_generation", "adapters", ["changed_generation"])
    op.add_column("versions", sa.Column("config", sa.Text))
    op.add_column("versions", sa.Column("no_effect", sa.Boolean))
    op.create_table(
        "events",
        sa.Column("seq", Sequence, primary_key=True, autoincrement=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("name", Name, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("sha256", sa.String(64)),
        sa.Column("active_version", sa.Integer),
        sa.Column("key_id", sa.String(64)),
        sa.Column("source", sa.String(64)),
        sa.Column("request_id", sa.String(128)),
    )
    op.create_index("ix_events_name", "events", ["name"])
    op.create_table(
        "idempotency",
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("created_s", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_idempotency_created_s", "idempotency", ["created_s"])
    op.execute("UPDATE meta SET format_version = 2")
