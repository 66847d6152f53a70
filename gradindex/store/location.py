"""Where an index lies: a folder on a disk, or a URL of an object store.

Names in it are relative, with slashes: "manifest/summary.json".
"""

from pathlib import Path

from gradindex.store.bucket import Bucket, is_chained
from gradindex.store.disk import Disk

Location = Disk | Bucket


def locate(path: str | Path | Location) -> Location:
    """The location at a path or URL; a file:// URL is a path, in which nothing is encoded.

    Raises:
        CallError: fsspec knows no such URL, or it is an address within an address.
        MissingPackage: its package is not installed.

    >>> str(locate("folder/idx")), str(locate("file:///folder/idx [v2]"))
    ('folder/idx', '/folder/idx [v2]')
    """
    if isinstance(path, Disk | Bucket):
        return path
    if isinstance(path, str):
        path = path.removeprefix("file://")
    is_url = isinstance(path, str) and ("://" in path or is_chained(path))
    return Bucket(str(path)) if is_url else Disk(Path(path))
