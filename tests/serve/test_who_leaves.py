"""Whoever closes the page before the answer is there: the work stops, and nobody hears of it."""

import asyncio
import gc
import threading
from pathlib import Path

import pytest

import gradindex
from gradindex.errors import CallError
from gradindex.serve import served_index

pytest_plugins = ["served_fixtures"]


def test_who_leaves_keeps_the_turn_until_the_work_ends(built: Path) -> None:
    """Work in a thread cannot be ended from outside: it is told to stop, and the next one waits."""
    served = served_index.ServedIndex("idx", str(built), gradindex.open(built))
    running, most = 0, 0
    job, begun, left = served_index.Job(), threading.Event(), threading.Event()

    def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        begun.set()
        left.wait(30)
        running -= 1

    async def leave_and_ask() -> None:
        first = asyncio.ensure_future(served.run(work, job))
        await asyncio.to_thread(begun.wait, 30)
        first.cancel()
        second = asyncio.ensure_future(served.run(work))
        await asyncio.sleep(0.1)  # in which it would begin, if it did not wait
        left.set()
        await second

    asyncio.run(leave_and_ask())
    assert most == 1
    with pytest.raises(CallError, match="nobody waits"):
        job.tell("gradients", 0, None)


def test_who_leaves_leaves_no_traceback(built: Path) -> None:
    """As asyncio prints it of an error that nobody looked at."""
    served = served_index.ServedIndex("idx", str(built), gradindex.open(built))
    job, begun, left = served_index.Job(), threading.Event(), threading.Event()
    complaints: list[str] = []

    def work() -> None:
        begun.set()
        left.wait(30)
        job.tell("gradients", 0, None)

    async def leave() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
        asked = loop.create_task(served.run(work, job))
        await asyncio.to_thread(begun.wait, 30)
        asked.cancel()
        await asyncio.sleep(0)  # it hears that nobody waits
        left.set()
        await asyncio.wait([asked])
        gc.collect()

    asyncio.run(leave())
    assert complaints == []
