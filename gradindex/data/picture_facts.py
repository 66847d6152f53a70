"""What tells that a picture is another one than before: its bytes, and cheap facts of its file."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CONTENT_DIGITS = 16  # hex digits of the SHA-256 of a picture's bytes
STAT_DIGITS = 8  # hex digits of the SHA-256 of size, time and inode of its file
NO_CONTENT = CONTENT_DIGITS * "-"  # in place of the digest of a picture whose bytes were not read
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


def stat_digests(source: str, sample_ids: Sequence[str]) -> np.ndarray:
    """Return digests of size, time and inode of each picture's file, [N] bytes of `STAT_DIGITS`.

    Where the ids are no paths in a folder, all pictures have one digest: of all files of the table.

    Args:
        source: the path that a data set was opened from; there are no facts of a name on the hub.
        sample_ids: the N ids of its pictures.
    """
    folder = Path(source)
    if folder.is_dir():
        digests = np.array([stat_digest(folder, [name]) for name in sample_ids], f"S{STAT_DIGITS}")
        if (digests != NO_STAT.encode()).any():
            return digests
    digest = stat_digest(folder, _file_names(folder))
    return np.full(len(sample_ids), digest.encode(), f"S{STAT_DIGITS}")


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
