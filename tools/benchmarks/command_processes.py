"""gradindex's commands in processes of their own, which can be killed."""

import multiprocessing
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gradindex.cli.main import main
from gradindex.store import store as store_module

SHARD_ROWS = 8  # pictures of a shard
STOP_SECONDS = 60  # after which a terminated command counts as one that goes on

Prepare = Callable[[], None]  # what a process does before its command

# The fork server imports once, so that a kill hits the command's work and not its imports.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "gradindex.builder.build",
        "gradindex.builder.upkeep",
        "gradindex.builder.verify",
        "gradindex.cli.main",
        "gradindex.report.info",
        "faiss",
        "diffusers.models.unets.unet_2d",
        "diffusers.schedulers.scheduling_ddpm",
        "torch._dynamo",
        "s3fs",
    ]
)


@dataclass(frozen=True)
class Command:
    """One of gradindex's commands on an index.

    Attributes:
        before: the index that it starts from; None where it starts from nothing.
        after: the index that it makes when nobody disturbs it.
        verb: "build", "index" or "remove".
        options: what follows the index's folder on the command line.
        after_anew: of a growth, what it makes when it makes whitening factors anew, as after a kill
            while it wrote them, rather than extend them.
    """

    before: Path | None
    after: Path
    verb: str
    options: tuple[str, ...] = ()
    after_anew: Path | None = None

    @property
    def data(self) -> Path:
        """The folder of a build's pictures."""
        return Path(self.options[self.options.index("--data") + 1])

    def words(self, folder: Path | str) -> list[str]:
        """Return the command line, for an index in that folder or at that URL."""
        return [self.verb, str(folder), *self.options]

    def lay_out(self, folder: Path) -> None:
        """Copy the index that it starts from into a folder, whatever was there."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.before:
            shutil.copytree(self.before, folder)


def start(words: Sequence[str], stderr: Path, prepare: Prepare | None = None) -> BaseProcess:
    """Return a process that has just begun with a command.

    Args:
        words: the command line.
        stderr: the file that gets its stderr.
        prepare: what it does before; can be pickled.
    """
    return _start(words, stderr, prepare)[0]


def _start(
    words: Sequence[str], stderr: Path, prepare: Prepare | None
) -> tuple[BaseProcess, Connection]:
    """A process that has just begun with a command, and what will tell its exit status."""
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_perform, args=(words, stderr, prepare, sender))
    process.start()
    sender.close()  # so that the process's end is the end of what comes
    receiver.recv()
    return process, receiver


def limit_file_size(file_bytes: int) -> None:
    """Let this process write no file that is larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def _perform(
    words: Sequence[str], stderr: Path, prepare: Prepare | None, parent: Connection
) -> None:
    """What the process does: tell that it begins, run the command, tell its exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # a kill would leave one of multiprocessing behind
    store_module.SHARD_ROWS = SHARD_ROWS
    if prepare is not None:
        prepare()
    parent.send(None)
    status: Any = 1
    try:
        main(list(words))
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
        raise
    finally:
        with suppress(BrokenPipeError):  # nobody asks for the status of a command to be killed
            parent.send(status)


def exit_status(words: Sequence[str], stderr: Path, prepare: Prepare | None = None) -> int:
    """Run a command to its end; return its exit status. The arguments are those of `start`.

    The process itself tells it: where threads run commands side by side, multiprocessing may read
    a process's status in two of them at once, and says 255 then.
    """
    process, receiver = _start(words, stderr, prepare)
    try:
        status = int(receiver.recv())
    except EOFError:  # it was killed
        status = -1
    process.join()
    return status


def require_done(words: Sequence[str], stderr: Path) -> None:
    """Run a command that has to succeed.

    Raises:
        RuntimeError: it failed.
    """
    if exit_status(words, stderr):
        raise RuntimeError(f"{' '.join(words)}: {stderr.read_text()}")


def stop_at_random(
    command: Command,
    folder: Path,
    seconds: float,
    random: np.random.Generator,
    stderr: Path,
    signal_name: str = "SIGKILL",
    prepare: Prepare | None = None,
) -> int | None:
    """Run a command for up to so many seconds and stop it.

    Args:
        signal_name: "SIGKILL" or "SIGTERM".

    Returns:
        Its exit status: 0 where it was done before, minus the signal's number where that ended it;
        None where it had to be killed, as it went on after the signal.
    """
    process = start(command.words(folder), stderr, prepare)
    time.sleep(random.uniform(0, seconds))
    if signal_name == "SIGKILL":
        process.kill()
    else:
        process.terminate()
    process.join(STOP_SECONDS)
    status = process.exitcode
    if status is None:
        process.kill()
        process.join()
    return status


def tells_reason(status: int, message: Sequence[str], reason: str = "") -> bool:
    """Whether a command failed with status 1 and one line, its last, that holds a reason.

    Args:
        message: the lines of its stderr.
    """
    errors = [line for line in message if line.startswith("Error: ")]
    return status == 1 and errors == message[-1:] and reason in message[-1]


def measure_duration(command: Command, folder: Path, stderr: Path) -> float:
    """Return the seconds that a command takes when nobody disturbs it."""
    command.lay_out(folder)
    process = start(command.words(folder), stderr)
    began = time.perf_counter()
    process.join()
    return time.perf_counter() - began
