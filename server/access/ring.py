"""The keys as one process holds them: in memory, and as they are in the database a moment ago.

A key that was made or revoked is known everywhere within POLL_INTERVAL_S and the time of one read: nobody is asked
while a request waits, so that a wrong key costs what a right one does. While the database is away, the keys of before
go on working. Knows nothing of HTTP.
"""

import asyncio
import logging
import time

from server.access.keys import Key, id_in, is_same
from server.access.store import KeyStore

POLL_INTERVAL_S = 1.0

log = logging.getLogger(__name__)

# Compared with where there is no such key, so that an unknown id takes as long as a wrong secret.
_NOBODYS_DIGEST = "0" * 64


class KeyRing:
    """What the keys of one process open. Methods that await belong to one event loop; `load` blocks.

    may_be_open  whether everybody may do everything while no key was ever made: for loopback addresses alone
    """

    def __init__(self, store: KeyStore, *, may_be_open: bool, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        self._store = store
        self._may_be_open = may_be_open
        self._poll_interval_s = poll_interval_s
        self._generation = -1
        self._keys: dict[str, Key] = {}
        self._poll: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for. A revoked key still counts: ending the last one locks, and never opens."""
        return self._may_be_open and not self._keys

    def find(self, offered: bytes) -> Key | None:
        """The live key that `offered` is, or None, after the same work whatever is wrong with it."""
        key = self._keys.get(id_in(offered) or "")
        is_right = is_same(offered, _NOBODYS_DIGEST if key is None else key.digest)
        return key if is_right and key is not None and key.is_live(time.time()) else None

    def load(self) -> None:
        """Read the keys if any changed. Raises StorageUnavailableError."""
        if self._store.generation() == self._generation:
            return
        self._generation, keys = self._store.all()
        self._keys = {key.id: key for key in keys}

    async def start(self) -> None:
        """Begin to follow the database."""
        self._poll = asyncio.create_task(self._keep_up())

    async def stop(self) -> None:
        """End the polling."""
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)
        self._store.close()

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(self._poll_interval_s)
            try:
                await asyncio.to_thread(self.load)
            except Exception as error:
                # Whatever the store does, the keys in memory go on working, and the next round tries again.
                log.warning("the keys cannot be read: %s", error)
