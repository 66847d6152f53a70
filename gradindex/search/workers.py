"""A search on a Ray cluster: actors that hold the search files, and who asks them."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from gradindex.errors import GradindexError, first_line
from gradindex.ray_connection import (
    ENVIRONMENT,
    MOST_LOSSES,
    PLACING_SECONDS,
    answer,
    connected,
    require_ray,
)

SECOND_ASKED_SECONDS = 5  # after which the other actor that has a file is asked, too


class SearchWorker:
    """An actor that searches some files of a search index; it keeps those that it has opened.

    Args:
        opened: gives the index; picklable.
        files: numbers of the files to open beforehand.
    """

    def __init__(self, opened: Callable[[], Any], files: Sequence[int]) -> None:
        self._index = opened()
        with suppress(GradindexError):  # which a search raises again
            for number in files:
                self._index.load(number)

    def search(self, number: int, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Search one file, see `AnnIndex.search_file`."""
        return self._index.search_file(number, queries, count)


class SearchWorkers:
    """The actors that search an index: one for each file, as far as there are CPUs.

    Each file is opened by two actors where there are two: the second answers when the first is
    lost. While an object of this class lives, so does its connection.

    Args:
        address: as for `fill_on_cluster`.
        opened: see `SearchWorker`.
        files: how many files there are.

    Raises:
        GradindexError: no cluster answers, or no actor starts.
    """

    def __init__(self, address: str, opened: Callable[[], Any], files: int) -> None:
        self._ray = require_ray()
        self._opened = opened
        self._files = files
        connection = ExitStack()
        connection.enter_context(connected(self._ray, address))
        weakref.finalize(self, connection.close)
        self._actor_class = self._ray.remote(SearchWorker).options(
            num_cpus=1, scheduling_strategy="SPREAD", runtime_env={"env_vars": ENVIRONMENT}
        )
        cpus = int(self._ray.cluster_resources().get("CPU", 0))
        self._count = max(1, min(files, cpus))
        self._actors = [self._start(number) for number in range(self._count)]

    def search(
        self, queries: np.ndarray, count: int
    ) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        """Yield (file number, what `SearchWorker.search` returns) for every file, as they come.

        Args:
            queries: [Q, W].
            count: how many rows of each file.

        Raises:
            GradindexError: what a worker raised; or no worker found a place in time, or those that
                search one file keep dying.
        """
        ray = self._ray
        sent = ray.put(queries)
        losses = Counter[int]()  # of the actors that searched a file
        running: dict[Any, tuple[int, int]] = {}  # {reference of a call: file and actor number}
        unanswered = set(range(self._files))
        silent_seconds = 0

        def ask(file: int, owner: int) -> None:
            running[self._actors[owner].search.remote(file, sent, count)] = file, owner

        for file in range(self._files):
            ask(file, self._owner(file, 0))
        while unanswered:
            done, _ = ray.wait(list(running), timeout=SECOND_ASKED_SECONDS)
            if not done:
                silent_seconds += SECOND_ASKED_SECONDS
                if silent_seconds >= PLACING_SECONDS:
                    raise GradindexError(
                        f"no CPU was free for a searching worker within {PLACING_SECONDS} s"
                    )
                # An actor may hang without being known as lost: the other one answers.
                asked = Counter(file for file, _ in running.values())
                for file in unanswered:
                    if asked[file] == 1:
                        ask(file, self._owner(file, losses[file] + 1))
                continue
            silent_seconds = 0
            file, owner = running.pop(done[0])
            if file not in unanswered:
                continue
            try:
                result = answer(ray, done[0])
            except ray.exceptions.RayError as error:
                losses[file] += 1
                if losses[file] == MOST_LOSSES:
                    raise GradindexError(
                        f"file {file}: lost {MOST_LOSSES} times ({first_line(error)})"
                    ) from error
                both_are_lost = losses[file] % 2 == 0
                if both_are_lost or self._count == 1:
                    self._actors[owner] = self._start(owner)
                ask(file, self._owner(file, losses[file]))
            else:
                unanswered.remove(file)
                yield file, result

    def _start(self, number: int) -> Any:
        """Start actor `number`, which opens its files."""
        files = [file for file in range(self._files) if number in self._owners(file)]
        return self._actor_class.remote(self._opened, files)

    def _owner(self, file: int, losses: int) -> int:
        """Return the number of the actor that is asked, after so many losses, for a file."""
        return self._owners(file)[losses % 2]

    def _owners(self, file: int) -> tuple[int, int]:
        """Return the numbers of the two actors that have a file open; they are one of one."""
        return file % self._count, (file + 1) % self._count
