"""The place that an index is written to: empty, an index, or what a killed build has left."""

from gradindex.errors import CallError
from gradindex.store.array_names import COMPACT_ARRAYS, IDS, ROW_ARRAYS
from gradindex.store.disk import Disk
from gradindex.store.location import Location
from gradindex.store.manifest import HEADER, is_store

# What lies in a folder when a build was killed before the store's header was there.
LEFT_BY_A_CRASH = {*ROW_ARRAYS, *COMPACT_ARRAYS, IDS, "manifest"}


def check_target(location: Location) -> None:
    """Raise CallError when something else than an index lies where one is to be built."""
    if isinstance(location, Disk):
        for folder in location.path.absolute().parents:
            if folder.exists() and not folder.is_dir():
                raise CallError(f"{location}: {folder} is a file; choose another place")
    if not is_store(location) and not location.names() <= _left_by_a_crash(location):
        raise CallError(f"{location}: exists and is not a gradindex index; choose another place")


def _left_by_a_crash(location: Location) -> set[str]:
    """The names in a place that a build leaves when it is killed early."""
    drafts = {name for name in location.names() if name.startswith(f".{HEADER}-")}
    left = LEFT_BY_A_CRASH | drafts
    # An empty header claims its name where the file system can do no better: `give_new_name`.
    if location.sizes([HEADER]).get(HEADER) == 0:
        left.add(HEADER)
    return left
