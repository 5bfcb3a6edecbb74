"""Keys for tests, held in memory."""

from collections.abc import Iterable

from server.access.keys import Key, Scope, digest_of, id_in, make_key


class Holders:
    """`server.access.gate.Keys` without a database; `give` makes a key and returns the header that carries it."""

    def __init__(self) -> None:
        self.keys: dict[bytes, Key] = {}
        self.is_open = False

    def give(self, *scopes: Scope, prefix: str | None = None, rows_per_minute: int | None = None) -> dict[str, str]:
        secret, key_id = make_key()
        granted: Iterable[Scope] = scopes
        self.keys[secret.encode()] = Key(
            key_id, digest_of(secret.encode()), frozenset(granted), prefix, 1, rows_per_minute=rows_per_minute
        )
        return {"authorization": f"Bearer {secret}"}

    def find(self, offered: bytes) -> Key | None:
        return self.keys.get(offered)


def id_of(header: dict[str, str]) -> str:
    """The id of the key in a header that `give` made."""
    key_id = id_in(header["authorization"].removeprefix("Bearer ").encode())
    assert key_id is not None
    return key_id
