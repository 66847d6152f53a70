"""Work done ahead in threads, its results handed on in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int = 1, most: int = 0
) -> Iterator[Result]:
    """`work(item)` for one item after the other, while threads work on the next ones.

    Args:
        most: how many results may be ready or in work beyond the one that is waited for; as many
            as threads by default.

    >>> list(prefetch(str.upper, ["a", "b", "c"]))
    ['A', 'B', 'C']
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > (most or threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
