"""The files of an index: which are committed, and in which two indexes differ."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from command_processes import SHARD_ROWS, Command, Prepare, exit_status

from gradindex.builder.verify import damages
from gradindex.errors import CallError
from gradindex.search.scoring import METHODS
from gradindex.store.array_names import ROW_ARRAYS
from gradindex.store.manifest import Shard, unseal
from gradindex.store.shard_files import shard_file_names
from gradindex.store.store import Store


def file_names(folder: Path) -> list[str]:
    """Return the names of an index's files, relative and sorted."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return sorted(file.relative_to(folder).as_posix() for file in files)


def count_drafts(folder: Path) -> int:
    """Return how many files have not got their names yet."""
    return sum(map(_is_draft, file_names(folder)))


def _is_draft(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def committed_shards(folder: Path) -> list[Shard]:
    """Return the finished shards of an index; none where no index is."""
    try:
        return [shard for shard, _ in Store(folder).committed()]
    except CallError:
        return []


def rows_of(folder: Path, array: str, shard: Shard) -> bytes:
    """Return the numbers of an array's shard."""
    rows = slice(shard.start, shard.stop)
    return Store(folder).read(array, shard.checkpoint, rows).tobytes()


def finish_and_compare(
    command: Command, folder: Path, stderr: Path, prepare: Prepare | None = None
) -> list[str]:
    """Run a command to its end, and tell what is then not as it would be had nothing happened.

    Files are compared bitwise. Whole shards that were committed before must still be the same
    files.

    Args:
        folder: of an index that the command was stopped at.
        prepare: what the process does before the command.
    """
    full = [shard for shard in committed_shards(folder) if shard.stop - shard.start == SHARD_ROWS]
    stamps = {shard.name: _stamps(folder, shard) for shard in full}
    if exit_status(command.words(folder), stderr, prepare):
        return [f"run again it fails: {stderr.read_text()}"]
    wrong = [
        f"shard {shard.name} was made twice"
        for shard in full
        if _stamps(folder, shard) != stamps[shard.name]
    ]
    return wrong + differences_from_undisturbed(folder, command) + list(damages(folder))


def _stamps(folder: Path, shard: Shard) -> list[tuple[int, int]]:
    """What tells a file that was written again: inode and time of each of a shard's files.

    Not of its manifest entry, which a build writes again where the pictures were moved or copied.
    """
    stats = [(folder / name).stat() for name in shard_file_names(shard, ROW_ARRAYS)]
    return [(stat.st_ino, stat.st_mtime_ns) for stat in stats]


def differences(folder: Path, other: Path) -> list[str]:
    """Return in which files two indexes differ, one line each.

    How long a query took does not count, nor what a kill left half-written.
    """
    names, other_names = _finished_names(folder), _finished_names(other)
    lines = [f"{name} is only in one" for name in sorted(names ^ other_names)]
    for name in sorted(names & other_names):
        if _content(folder / name) != _content(other / name):
            lines.append(f"{name} differs")
    return lines


def differences_from_undisturbed(folder: Path, command: Command) -> list[str]:
    """Return in which files an index differs from what a command makes undisturbed."""
    return differences_from_either(folder, command.after, command.after_anew)


def differences_from_either(folder: Path, extended: Path, anew: Path | None) -> list[str]:
    """Return in which files an index differs from the one that a growth makes.

    A method's whitening factors, and what is made of them, are those of either of two indexes.

    Args:
        extended: where the growth extended the factors.
        anew: where it made them anew; None where it has none to extend.
    """
    lines = differences(folder, extended)
    if anew is None or not lines:
        return lines
    lines_anew = differences(folder, anew)
    for method in METHODS:
        if not any(_is_whitened(line, method) for line in lines_anew):
            lines = [line for line in lines if not _is_whitened(line, method)]
    return lines


def _is_whitened(name: str, method: str) -> bool:
    """Whether a file, or a line about it, is of a method's whitening factors or made of them."""
    return name.startswith((f"whiten/{method}", f"faiss/{method}-whitened"))


def _finished_names(folder: Path) -> set[str]:
    return {name for name in file_names(folder) if not _is_draft(name)}


def _content(file: Path) -> bytes | Mapping[str, Any]:
    """A file's content; of a search index's record without the measured time."""
    content = file.read_bytes()
    if file.parent.name == "faiss" and file.suffix == ".json":
        return {**unseal(content), "query_seconds": None}
    return content
