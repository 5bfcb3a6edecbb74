"""Work ends with its client, and an end of another cause stays what it is."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from server.disconnect import unless_gone


class Client:
    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.asked = 0

    async def receive(self) -> Message:
        self.asked += 1
        if self.asked == 1:
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.leaves.wait()
        return {"type": "http.disconnect"}


async def test_work_of_a_client_that_stays_returns_and_leaves_nobody_watching() -> None:
    client = Client()
    assert await unless_gone(client.receive, asyncio.sleep(0.01, "done")) == "done"
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    client, cancelled = Client(), []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    asyncio.get_running_loop().call_later(0.02, client.leaves.set)
    with pytest.raises(ClientDisconnect):
        await unless_gone(client.receive, work())
    assert cancelled == [True]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        await unless_gone(Client().receive, work())


async def test_cancelling_from_outside_stays_a_cancellation() -> None:
    client = Client()
    outer = asyncio.ensure_future(unless_gone(client.receive, asyncio.sleep(30)))
    await asyncio.sleep(0.01)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer


async def test_leaving_inside_of_a_timeout_is_no_timeout() -> None:
    client = Client()

    async def work() -> None:
        async with asyncio.timeout(10):
            await asyncio.sleep(30)

    asyncio.get_running_loop().call_later(0.02, client.leaves.set)
    with pytest.raises(ClientDisconnect):
        await unless_gone(client.receive, work())
