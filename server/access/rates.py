"""How much one key may ask, and how often one address may be wrong: counted with `limits`, in memory or in Redis.

    rows        of one key in a minute, over the whole server: each replica allows its share, or Redis counts for all
    wrong keys  of one address in a minute, in each process

What is left goes out with the reply, in the fields RateLimit and RateLimit-Policy. Where Redis does not answer, a
replica counts by itself: a limit that is somewhat off is better than no service. Knows nothing of routes.
"""

import logging
import math
import random
import time
from collections.abc import MutableMapping
from typing import Any

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from limits.util import WindowStats
from redis.asyncio import ConnectionPool

from server.access.keys import Key
from server.errors import InvalidRequestError, RateLimitedError

WINDOW_S = 60
WRONG_KEYS_PER_MINUTE = 30
# Where Redis takes longer than this, a replica counts by itself.
REDIS_TIMEOUT_S = 0.25

log = logging.getLogger(__name__)


class RateLimits:
    """The limits of one process. Every method belongs to one event loop.

    rows_per_minute  of every key that has no limit of its own; None: no limit
    redis_url        redis://host:port/database where all replicas count together
    shares           live replicas that share the work; what each allows by itself is that part of a limit
    """

    def __init__(self, rows_per_minute: int | None, *, redis_url: str | None = None, shares: int = 1) -> None:
        self.shares = shares
        self._rows_per_minute = rows_per_minute
        self._alone = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._wrong = FixedWindowRateLimiter(MemoryStorage())
        self._together: SlidingWindowCounterRateLimiter | None = None
        self._connections: ConnectionPool | None = None
        if redis_url is not None:
            self._connections = ConnectionPool.from_url(
                redis_url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
            )
            self._together = SlidingWindowCounterRateLimiter(
                RedisStorage(
                    f"async+{redis_url}",
                    implementation="redispy",
                    wrap_exceptions=True,
                    connection_pool=self._connections,  # type: ignore[arg-type]  # handed on to redis as it is
                )
            )

    @property
    def is_shared(self) -> bool:
        """Whether all replicas count together."""
        return self._together is not None

    def describe(self) -> dict[str, Any]:
        """For GET /v1/info."""
        counted = "together, in Redis" if self.is_shared else f"in memory, divided by {self.shares} live replicas"
        return {"rows_per_minute": self._rows_per_minute, "counted": counted}

    def meter_of(self, key: Key, headers: MutableMapping[str, str]) -> "RowMeter | None":
        """The meter of this key for one request, which puts what is left in `headers`; None where there is no limit."""
        rows = key.rows_per_minute or self._rows_per_minute
        return None if rows is None else RowMeter(self, key.id, rows, headers)

    async def close(self) -> None:
        """Close the connections to Redis, if there are any."""
        if self._connections is not None:
            await self._connections.aclose()

    async def count_wrong_key(self, source: str) -> None:
        """Raises RateLimitedError where one address had too many."""
        limit = RateLimitItemPerMinute(WRONG_KEYS_PER_MINUTE)
        if not await self._wrong.hit(limit, source):
            raise RateLimitedError(
                f"more than {WRONG_KEYS_PER_MINUTE} wrong keys from this address within a minute",
                hint="a right key is let in at any time",
                retry_after_s=_pause_s(await self._wrong.get_window_stats(limit, source)),
            )

    async def take(self, key_id: str, rows_per_minute: int, rows: int) -> tuple[bool, int, WindowStats]:
        """Count `rows` of a key if it may have them: whether it may, of how many a minute here, and what is left."""
        if self._together is not None:
            try:
                return await _take(self._together, key_id, rows_per_minute, rows)
            except StorageError as error:
                log.warning("Redis does not count the rows of keys: %s", type(error.storage_error).__name__)
        return await _take(self._alone, key_id, max(1, rows_per_minute // self.shares), rows)


class RowMeter:
    """What one key may have classified, for one request."""

    def __init__(
        self, limits: RateLimits, key_id: str, rows_per_minute: int, headers: MutableMapping[str, str]
    ) -> None:
        self._limits = limits
        self._key_id = key_id
        self._rows_per_minute = rows_per_minute
        self._headers = headers

    async def charge(self, rows: int) -> None:
        """Count rows before they are queued. Raises RateLimitedError, and then none of them is counted;
        InvalidRequestError for more rows at once than a whole minute has.
        """
        is_allowed, most, stats = await self._limits.take(self._key_id, self._rows_per_minute, rows)
        if rows > most:
            raise InvalidRequestError(
                f"{rows} rows in one call, and this key may have {most} a minute here",
                hint=f"send at most {most} at once",
            )
        # One word of letters: huggingface_hub shows it, and reads no other.
        self._headers["ratelimit"] = f'"rows";r={stats.remaining};t={_left_s(stats)}'
        self._headers["ratelimit-policy"] = f'"rows";q={most};w={WINDOW_S}'
        if not is_allowed:
            raise RateLimitedError(
                f"this key has had its {most} rows of this minute",
                hint="send less at a time, or ask for a higher limit",
                retry_after_s=_pause_s(stats),
            )


async def _take(
    limiter: SlidingWindowCounterRateLimiter, key_id: str, most: int, rows: int
) -> tuple[bool, int, WindowStats]:
    limit = RateLimitItemPerMinute(most, namespace="adakron")
    is_allowed = rows <= most and await limiter.hit(limit, key_id, cost=rows)
    return is_allowed, most, await limiter.get_window_stats(limit, key_id)


def _left_s(stats: WindowStats) -> int:
    return max(1, math.ceil(stats.reset_time - time.time()))


def _pause_s(stats: WindowStats) -> int:
    # Spread out, so that those turned away together do not come back together.
    left_s = _left_s(stats)
    return left_s + random.randint(0, 1 + left_s // 4)
