"""Progress of long work: a bar in a terminal or a notebook, a plain line now and then in a log."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, Protocol, Self, TypeVar

from gradindex.wording import duration_text

Item = TypeVar("Item")

DELAY = 2  # seconds that work lasts before it has a bar
LOG_INTERVAL = 30  # seconds between the lines in a log

Watcher = Callable[[str, int, int | None], None]  # is told the title, how much is done, of how much
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


class Progress(Protocol):
    """What `progress` returns: iterate over it, or call `update` in a `with` block."""

    def __iter__(self) -> Iterator[Any]:
        """Yield the items, each of which counts for one."""

    def __enter__(self) -> Self:
        """Return the progress itself."""

    def __exit__(self, *error: Any) -> Any:
        """End it."""

    def update(self, count: int = 1) -> Any:
        """Note that `count` more is done."""


def progress(
    items: Iterable[Any] | None = None,
    title: str = "",
    total: int | None = None,
    unit: str = "it",
) -> Progress:
    """Show on stderr how far work is, when it takes long.

    A terminal and a notebook have a bar of tqdm. Elsewhere, as in the log of a batch job, a line is
    written every half minute. The environment's TQDM_DISABLE=1 turns all of it off.

    Args:
        items: what is walked through; None where `update` is called.
        title: what is done.
        total: how many there are; by default the length of the items.
        unit: what is counted.

    >>> [number for number in progress([1, 2], "counting")]
    [1, 2]
    """
    if watcher := _watcher.get():
        return _WatchedProgress(watcher, items, title, total)
    if _in_notebook():
        return _notebook_bar(items, title, total, unit)
    if sys.stderr is not None and sys.stderr.isatty():
        from tqdm import tqdm

        return tqdm(items, title, total, unit=unit, delay=DELAY)
    return LoggedProgress(items, title, total, unit)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Have a function told of all progress in a `with` block of this thread; none is shown.

    >>> with watched(lambda title, done, total: print(title, done, "of", total)):
    ...     numbers = list(progress([1, 2], "counting"))
    counting 0 of 2
    counting 1 of 2
    counting 2 of 2
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    get_shell = getattr(ipython, "get_ipython", None)
    shell = None if get_shell is None else get_shell()
    return shell is not None and "IPKernelApp" in shell.config


def _notebook_bar(
    items: Iterable[Any] | None, title: str, total: int | None, unit: str
) -> Progress:
    """A bar of widgets, or of text where the notebook has no widgets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no widgets
        from tqdm.auto import tqdm
    return tqdm(items, title, total, unit=unit, delay=DELAY)


class LoggedProgress(Generic[Item]):
    """Progress as lines of text: `gradients: 120 of 500 gradients, 1:30 so far, about 4.8 minutes
    left`.

    The arguments are those of `progress`. Work that ends before the first line is due has none.
    """

    def __init__(
        self,
        items: Iterable[Item] | None = None,
        title: str = "",
        total: int | None = None,
        unit: str = "it",
    ) -> None:
        self._items = items
        self._title = title
        self._unit = unit
        if total is None and isinstance(items, Sized):
            total = len(items)
        self._total = total
        self._done = 0
        self._lines = 0
        self._shows = os.environ.get("TQDM_DISABLE", "0") in ("", "0")
        self._began = self._last_line = time.monotonic()

    def __iter__(self) -> Iterator[Item]:
        """Yield the items, each of which counts for one."""
        with self:
            for item in self._items or ():
                yield item
                self.update()

    def __enter__(self) -> Self:
        """Return the progress itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Write a last line, where there was one before and no error ended the work."""
        if self._lines and error[:1] in ((), (None,)):
            self._write("done in")

    def update(self, count: int = 1) -> None:
        """Note that `count` more is done; write a line where one is due."""
        self._done += count
        if time.monotonic() >= self._last_line + LOG_INTERVAL:
            self._write("so far")

    def _write(self, when: str) -> None:
        """Write one line to stderr."""
        self._last_line = time.monotonic()
        self._lines += 1
        if not self._shows or sys.stderr is None:
            return
        seconds = self._last_line - self._began
        of_total = "" if self._total is None else f" of {self._total:,}"
        duration = _clock(seconds)
        if when == "done in":
            times = f"done in {duration}"
        elif self._total and self._done:
            left = seconds / self._done * max(self._total - self._done, 0)
            times = f"{duration} so far, {duration_text(left)} left"
        else:
            times = f"{duration} so far"
        title = f"{self._title}: " if self._title else ""
        unit = self._unit if (self._total or self._done) == 1 else f"{self._unit}s"
        sys.stderr.write(f"{title}{self._done:,}{of_total} {unit}, {times}\n")
        sys.stderr.flush()


class _WatchedProgress(LoggedProgress[Item]):
    """Progress that a function is told of, see `watched`."""

    def __init__(
        self,
        watcher: Watcher,
        items: Iterable[Item] | None,
        title: str,
        total: int | None,
    ) -> None:
        super().__init__(items, title, total)
        self._watcher = watcher
        self.update(0)

    def update(self, count: int = 1) -> None:
        """Tell of what is done."""
        self._done += count
        self._watcher(self._title, self._done, self._total)


def _clock(seconds: float) -> str:
    """A duration as minutes and seconds, with hours where there are any.

    >>> _clock(95), _clock(7384)
    ('1:35', '2:03:04')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
