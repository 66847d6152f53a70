"""Work done ahead in threads, and handed on in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


def ahead(work: Callable[[Item], Done], items: Iterable[Item], threads: int = 1, most: int = 0) -> Iterator[Done]:
    """`work(item)` for one item after the other, the next ones being worked on meanwhile, one in each thread.

    Args:
        most: how many may be done or being done beyond the one that is waited for; as many as threads by default.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Done]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > (most or threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
