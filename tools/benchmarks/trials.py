"""A small real index and the commands that make it, in processes of their own that can be killed."""

import multiprocessing
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from tqdm import tqdm

import gradindex
from gradindex import store as store_module
from gradindex.arrays import ROW_ARRAYS
from gradindex.cli import main
from gradindex.errors import CallError, StoreError
from gradindex.manifest import unseal
from gradindex.search_index import METHODS
from gradindex.store import Store
from gradindex.verify import damages

PICTURES, FIRST, REMOVED, SHARD_ROWS = 92, 60, 5, 8  # all pictures, those of the first build, pictures of a shard
SIZE, DIM, TIMESTEPS, K, BATCH = 8, 64, 2, 5, 8

FORKS = multiprocessing.get_context("forkserver")  # imports once, so that a kill hits the work and not the imports
FORKS.set_forkserver_preload(
    ["gradindex.builder", "gradindex.cli", "gradindex.info", "gradindex.verify", "faiss",
     "diffusers.models.unets.unet_2d", "diffusers.schedulers.scheduling_ddpm", "torch._dynamo"]
)  # fmt: skip

Answers = dict[str, list[gradindex.Result]]


@dataclass(frozen=True)
class Command:
    """One of gradindex's commands: the index that it starts from, and the one that it makes when nobody disturbs it."""

    before: Path | None
    after: Path
    verb: str
    options: tuple[str, ...] = ()

    def words(self, place: Path) -> list[str]:
        return [self.verb, str(place), *self.options]

    def begin(self, place: Path) -> None:
        """Lay the index that it starts from at a place."""
        shutil.rmtree(place, ignore_errors=True)
        if self.before:
            shutil.copytree(self.before, place)


class Setting:
    """A model, scikit-learn's digits, and what each command makes of them.

    Attributes:
        commands: by name. whole: the finished index that they lead to; again: the build that mends it.
        truth: the answers of each finished index.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder, self.model = folder, save_model(folder / "model")
        numbers = np.random.default_rng(0).permutation(PICTURES)
        names = {folder / "first": sorted(numbers[:FIRST]), folder / "all": range(PICTURES)}
        self.queries = write_digits(folder / "queries", range(PICTURES, PICTURES + 2))
        some, every = (write_digits(place, rows)[0].parent for place, rows in names.items())
        ids = [f"{number:04d}.png" for number in numbers[:REMOVED]]
        first, grown, self.whole = (folder / name for name in ("index", "grown", "removed"))
        self.commands = {
            "build": Command(None, first, "build", self._options(some)),
            "build, more pictures": Command(first, grown, "build", self._options(every)),
            "index": Command(grown, grown, "index"),
            "remove": Command(grown, self.whole, "remove", tuple(ids)),
        }
        self.again = self.commands["build, more pictures"]
        for command in self.commands.values():
            if not command.after.exists():
                command.begin(command.after)
                require_done(command.words(command.after), folder / "stderr")
        self.truth = {place: self.answers(place) for place in (first, grown, self.whole)}

    def _options(self, data: Path) -> tuple[str, ...]:
        options = {"model": self.model, "data": data, "timesteps": TIMESTEPS, "dim": DIM, "batch-size": BATCH,
                   "device": "cpu"}  # fmt: skip
        return tuple(str(word) for name, value in options.items() for word in (f"--{name}", value))

    def answers(self, place: Path) -> Answers:
        """Of each method."""
        return {method: self.answer(place, method) for method in METHODS}

    def answer(self, place: Path, method: str) -> list[gradindex.Result]:
        return gradindex.open(place, device="cpu").query(self.queries, K, method, batch_size=BATCH)

    def wrong(self, place: Path, command: Command) -> list[str]:
        """What is not as it should be after a command was stopped: rows committed, and answers as before or as after.

        A first build that has not finished gives none. A query may mend search files, and so is asked of a copy.
        """
        found = [f"{name} of committed shard {shard.name} differs"
                 for shard, _ in committed(place) for name in ROW_ARRAYS
                 if rows_of(place, name, shard) != rows_of(command.after, name, shard)]  # fmt: skip
        copy, right = self.folder / "copy", [self.truth[command.after]]
        if command.before:
            right.append(self.truth[command.before])
        shutil.rmtree(copy, ignore_errors=True)
        if place.exists():
            shutil.copytree(place, copy)
        try:
            if self.answers(copy) not in right:
                found.append("another answer")
        except (StoreError, CallError) as error:
            if command.before:
                found.append(f"no answer: {error}")
        return found


def save_model(folder: Path) -> Path:
    """A small DDPM pipeline with random weights."""
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(folder)
    return folder


def write_digits(folder: Path, numbers: Sequence[int]) -> list[Path]:
    """Some of scikit-learn's digits as PNG files."""
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True)
    images = (load_digits().images / 16 * 255).astype(np.uint8)
    files = [folder / f"{number:04d}.png" for number in numbers]
    for number, file in zip(numbers, files, strict=True):
        Image.fromarray(images[number]).save(file)
    return files


def start(words: Sequence[str], stderr: Path, file_bytes: int | None = None) -> BaseProcess:
    """A process that has just begun with a command; no file that it writes may be larger than `file_bytes`."""
    here, there = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_perform, args=(words, stderr, file_bytes, there))
    process.start()
    here.recv()
    return process


def _perform(words: Sequence[str], stderr: Path, file_bytes: int | None, begun: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # a kill would leave one of multiprocessing behind
    store_module.SHARD_ROWS = SHARD_ROWS
    begun.send(None)
    main(list(words))


def status(words: Sequence[str], stderr: Path, file_bytes: int | None = None) -> int:
    """The exit status of a command."""
    process = start(words, stderr, file_bytes)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def require_done(words: Sequence[str], stderr: Path) -> None:
    """Run a command that has to succeed."""
    if status(words, stderr):
        raise RuntimeError(f"{' '.join(words)}: {stderr.read_text()}")


def kill_at_random(command: Command, place: Path, seconds: float, random: np.random.Generator, stderr: Path) -> bool:
    """Run a command for up to so many seconds and kill it; False where it was done before."""
    process = start(command.words(place), stderr)
    time.sleep(random.uniform(0, seconds))
    process.kill()
    process.join()
    return process.exitcode != 0


def duration(command: Command, place: Path, stderr: Path) -> float:
    """Seconds that it takes when nobody disturbs it."""
    command.begin(place)
    process, began = start(command.words(place), stderr), time.perf_counter()
    process.join()
    return time.perf_counter() - began


def unlike(command: Command, place: Path, stderr: Path) -> list[str]:
    """Run a command to its end: what is then not as it would be had nothing happened; files are compared bitwise.

    Whatever whole shards were committed before must still be the same files.
    """
    full = [shard for shard, _ in committed(place) if shard.stop - shard.start == SHARD_ROWS]
    before = {shard.name: _stamps(place, shard) for shard in full}
    if status(command.words(place), stderr):
        return [f"run again it fails: {stderr.read_text()}"]
    found = [f"shard {shard.name} was made twice" for shard in full if _stamps(place, shard) != before[shard.name]]
    return found + differences(place, command.after) + list(damages(place))


def differences(place: Path, other: Path) -> list[str]:
    """In which files two indexes differ; not in how long a query took, nor in what a kill left half-written."""
    mine, theirs = ({name for name in files_of(each) if not _is_draft(name)} for each in (place, other))
    return [f"{name} is only in one" for name in sorted(mine ^ theirs)] + [
        f"{name} differs" for name in sorted(mine & theirs) if _content(place / name) != _content(other / name)
    ]


def _content(file: Path) -> Any:
    content = file.read_bytes()
    if (file.parent.name, file.suffix) == ("faiss", ".json"):
        return {**unseal(content), "query_seconds": None}
    return content


def files_of(place: Path) -> list[str]:
    """The names of an index's files."""
    return sorted(file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file())


def drafts_in(place: Path) -> int:
    """How many files have not got their names yet."""
    return sum(map(_is_draft, files_of(place)))


def _is_draft(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def committed(place: Path) -> list[tuple[Any, dict[str, Any]]]:
    """The finished shards of an index, and of nothing none."""
    try:
        return list(Store(place).committed())
    except CallError:
        return []


def rows_of(place: Path, name: str, shard: Any) -> bytes:
    return Store(place).read(name, shard.checkpoint, slice(shard.start, shard.stop)).tobytes()


def _stamps(place: Path, shard: Any) -> list[tuple[int, int]]:
    """What tells a file that was written again."""
    facts = [(place / name).stat() for name in (shard.entry, *Store(place).files(shard))]
    return [(fact.st_ino, fact.st_mtime_ns) for fact in facts]
