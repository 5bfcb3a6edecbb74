"""Where keys are kept: a table of the catalogue's database, written by `adakron keys` and read by every process.

A counter moves with every change, so that a reader polls one number. Knows nothing of HTTP.
"""

import time
from collections.abc import Iterable

from sqlalchemy import Row, select

from server.access.keys import SCOPES, Key, Scope, digest_of, make_key
from server.database import Database
from server.tables import keys, meta


class KeyStore:
    """All keys that ever were; revoked ones stay, as the log of changes names them.

    Besides what each method says, all raise StorageUnavailableError and StorageFullError, as `Database` does. Every
    method blocks. Any thread.
    """

    def __init__(self, url: str, *, is_writer: bool) -> None:
        self._database = Database(url, is_writer=is_writer)

    def close(self) -> None:
        """Close the database; the object is of no use afterwards."""
        self._database.close()

    def generation(self) -> int:
        """The counter of changes to keys."""
        with self._database.read() as connection:
            generation: int = connection.execute(select(meta.c.keys_generation)).scalar_one()
            return generation

    def all(self) -> tuple[int, list[Key]]:
        """The counter and every key, oldest first, as of one moment."""
        with self._database.read() as connection:
            generation: int = connection.execute(select(meta.c.keys_generation)).scalar_one()
            rows = connection.execute(select(keys).order_by(keys.c.created_s, keys.c.id)).all()
            return generation, [_key(row) for row in rows]

    def create(
        self,
        scopes: Iterable[Scope],
        *,
        prefix: str | None = None,
        expires_s: int | None = None,
        rows_per_minute: int | None = None,
        note: str = "",
    ) -> tuple[str, Key]:
        """Make a key. Returns it, for the only time, and what is kept of it."""
        secret, key_id = make_key()
        key = Key(
            key_id,
            digest_of(secret.encode("ascii")),
            frozenset(scopes),
            prefix,
            int(time.time()),
            expires_s,
            rows_per_minute=rows_per_minute,
            note=note,
        )
        with self._database.write() as connection:
            connection.execute(
                keys.insert().values(
                    id=key.id,
                    digest=key.digest,
                    scopes=" ".join(scope for scope in SCOPES if scope in key.scopes),
                    prefix=prefix,
                    created_s=key.created_s,
                    expires_s=expires_s,
                    rows_per_minute=rows_per_minute,
                    note=note,
                )
            )
            connection.execute(meta.update().values(keys_generation=meta.c.keys_generation + 1))
        return secret, key

    def revoke(self, key_id: str) -> bool:
        """End a key for good; one that is revoked stays so. Returns whether there is such a key."""
        with self._database.write() as connection:
            live = (keys.c.id == key_id) & keys.c.revoked_s.is_(None)
            ended = connection.execute(keys.update().where(live).values(revoked_s=int(time.time()))).rowcount
            if ended:
                connection.execute(meta.update().values(keys_generation=meta.c.keys_generation + 1))
            return connection.execute(select(keys.c.id).where(keys.c.id == key_id)).first() is not None


def _key(row: Row[tuple[object, ...]]) -> Key:
    members = dict(row._mapping)
    granted = members.pop("scopes").split()
    return Key(**members, scopes=frozenset(scope for scope in SCOPES if scope in granted))
