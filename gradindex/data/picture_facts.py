"""What tells that a picture is another one than before: its bytes, and cheap facts of its file."""

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

CONTENT_DIGITS = 16  # hex digits of the SHA-256 of a picture's bytes
STAT_DIGITS = 8  # hex digits of the SHA-256 of size, time and inode of its file
NO_CONTENT = CONTENT_DIGITS * "-"  # in place of the digest of a picture whose bytes were not read
LOOKED_AT = 16  # pictures, whether their ids are paths of files
NO_STAT = STAT_DIGITS * "-"  # where a picture has no file, neither of its own nor in a table


def content_digest(picture: Image.Image) -> str:
    """Return 16 hex digits of the SHA-256 of the bytes that a picture was opened from.

    Args:
        picture: opened by Pillow and not decoded yet; it can be decoded after.

    >>> content_digest(Image.new("L", (1, 1)))  # it was opened from no bytes
    '----------------'
    """
    stream = getattr(picture, "fp", None)
    if stream is None:
        return NO_CONTENT
    position = stream.tell()
    stream.seek(0)
    digest = hashlib.sha256(stream.read()).hexdigest()
    stream.seek(position)
    return digest[:CONTENT_DIGITS]


def file_size(path: str | None) -> int:
    """Return the bytes of a file; 0 where there is none."""
    try:
        status = os.stat(path or "")
    except (OSError, ValueError):  # such as a name too long for a file
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


class FileStats:
    """Digests of size, time and inode of pictures' files, which are looked at when asked for.

    Where the ids are no paths in a folder, all pictures have one digest: of all files of the table.
    Indexed by a row number it is a digest, `STAT_DIGITS` of bytes.

    Args:
        source: the path that a data set was opened from; there are no facts of a name on the hub.
        sample_ids: the N ids of its pictures.
        there: [N] bool, which pictures are there.
        beside: given a row number, another file that the picture is made of.
    """

    def __init__(
        self,
        source: str,
        sample_ids: Sequence[str],
        there: np.ndarray,
        beside: Callable[[int], Path | None] | None = None,
    ) -> None:
        self._folder = Path(source)
        self._ids, self._there, self._beside = sample_ids, there, beside
        self._digests = np.zeros(len(sample_ids), f"S{STAT_DIGITS}")  # empty until asked for

    def __getitem__(self, row: int) -> bytes:
        if not self._digests[row]:
            self._digests[row] = self._digest(row).encode()
        return bytes(self._digests[row])

    def _digest(self, row: int) -> str:
        digest = self._of_all
        if digest is None:
            digest = stat_digest(self._folder, [self._ids[row]])
        file = None if self._beside is None else self._beside(row)
        if file is None or digest == NO_STAT:
            return digest
        both = digest + stat_digest(file.parent, [file.name])
        return hashlib.sha256(both.encode()).hexdigest()[:STAT_DIGITS]

    @cached_property
    def _of_all(self) -> str | None:
        """The digest of all files of a table; None where ids are paths of files."""
        looked_at = np.flatnonzero(self._there)[:LOOKED_AT].tolist()
        if self._folder.is_dir():
            for row in looked_at:
                if stat_digest(self._folder, [self._ids[row]]) != NO_STAT:
                    return None
        return stat_digest(self._folder, _file_names(self._folder))


def _file_names(path: Path) -> list[str]:
    """The names of all files in a folder, sorted; of a file, that it is the path itself."""
    names = []
    for folder, _, files in os.walk(path):
        names += [os.path.join(os.path.relpath(folder, path), file) for file in files]
    return sorted(names) if path.is_dir() else ["."]


def stat_digest(folder: Path, names: Sequence[str]) -> str:
    """Return a digest of size, time and inode of some files; `NO_STAT` where none is there."""
    facts = []
    for name in names:
        try:
            status = os.stat(os.path.normpath(os.path.join(folder, name)))
        except (OSError, ValueError):
            continue
        facts.append((status.st_size, status.st_mtime_ns, status.st_ino))
    if not facts:
        return NO_STAT
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:STAT_DIGITS]
