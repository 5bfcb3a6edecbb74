"""Work for a client that may leave: when it does, what was begun for it ends too. Knows nothing of what the work is."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Message

T = TypeVar("T")

# Whoever is answered within this was not worth watching: a task for that costs a tenth of a short request.
WATCHED_AFTER_S = 0.005


async def unless_gone(receive: Callable[[], Awaitable[Message]], work: Awaitable[T]) -> T:
    """What `work` returns; cancels it once the client has gone, which is noticed after WATCHED_AFTER_S at the earliest.
    Only after the request's body was read to its end.

    Raises ClientDisconnect for a client that has gone, and whatever `work` raises.
    """
    task = asyncio.current_task()
    assert task is not None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        task.cancel()

    watcher: asyncio.Task[None] | None = None

    def begin() -> None:
        nonlocal watcher
        watcher = asyncio.ensure_future(watch())

    timer = asyncio.get_running_loop().call_later(WATCHED_AFTER_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        # Cancelled by us and by nobody else beside: then it is an answer that nobody waits for, and no cancellation.
        if is_gone and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
