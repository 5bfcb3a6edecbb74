"""The tables of the catalogue, as SQLAlchemy knows them. `server.migrations` makes them; a test holds the two together.

    meta         one row: generation, format_version, keys_generation
    adapters     name -> active_version (None: staged only), changed_generation, split, deleted; heat: calls, halved
                 every day, as of heat_at_s
    versions     (name, version) -> sha256, size_bytes, created_at, config, no_effect, state ("kept" or "deleted")
    events       one row a change: when, which, what, who; never updated, never deleted
    idempotency  key -> the request that came with it, and what it did
    keys         API keys without their secrets; never deleted

Rows of deleted versions stay as tombstones, which is how a version number is never used twice.
"""

from sqlalchemy import BigInteger, Boolean, Column, Float, Integer, MetaData, String, Table, Text

FORMAT_VERSION = 4

# Bytes decide the order of names in SQLite; PostgreSQL's own order would depend on where it was installed.
Name = String(160).with_variant(String(160, collation="C"), "postgresql")
# SQLite numbers rows by itself only where the column is an INTEGER.
Sequence = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()
meta = Table(
    "meta",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("format_version", Integer, nullable=False),
    Column("keys_generation", BigInteger, nullable=False, server_default="0"),
)
adapters = Table(
    "adapters",
    metadata,
    Column("name", Name, primary_key=True),
    Column("active_version", Integer),
    Column("changed_generation", BigInteger, nullable=False, index=True),
    Column("deleted", Boolean, nullable=False),
    Column("split", Text),
    Column("heat", Float, nullable=False, server_default="0"),
    Column("heat_at_s", BigInteger, nullable=False, server_default="0"),
)
versions = Table(
    "versions",
    metadata,
    Column("name", Name, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("config", Text),
    Column("no_effect", Boolean),
)
events = Table(
    "events",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("at", String(32), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("name", Name, nullable=False, index=True),
    Column("action", String(16), nullable=False),
    Column("version", Integer),
    Column("sha256", String(64)),
    Column("active_version", Integer),
    Column("key_id", String(64)),
    Column("source", String(64)),
    Column("request_id", String(128)),
)
idempotency = Table(
    "idempotency",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("request", String(64), nullable=False),
    Column("outcome", Text, nullable=False),
    Column("created_s", BigInteger, nullable=False, index=True),
)
keys = Table(
    "keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("scopes", String(64), nullable=False),
    Column("prefix", String(80)),
    Column("created_s", BigInteger, nullable=False),
    Column("expires_s", BigInteger),
    Column("revoked_s", BigInteger),
    Column("rows_per_minute", Integer),
    Column("note", String(128), nullable=False),
)
