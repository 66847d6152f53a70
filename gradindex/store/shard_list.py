"""The shards of a store, and which of them its manifest says are committed."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress

from gradindex.errors import StoreError
from gradindex.recipe import Recipe
from gradindex.store.array_names import array_dtype, row_arrays
from gradindex.store.arrays import shard_key
from gradindex.store.location import Location
from gradindex.store.manifest import Shard, differences, read_record
from gradindex.store.records import ShardEntry, Summary
from gradindex.store.shard_files import shard_file_names
from gradindex.wording import share

LARGE_BYTES = 64 << 20  # of a picture's rows, from which on their files are looked at first


def part_of(shards: Sequence[Shard], part: tuple[int, int]) -> Sequence[Shard]:
    """Return the shards of part (I, N), the I-th of N parts, I from 0 to N − 1.

    >>> part_of(range(7), (1, 3))
    range(2, 4)
    """
    number, parts = part
    return shards[len(shards) * number // parts : len(shards) * (number + 1) // parts]


class ShardList:
    """The units of work of a store with rows [C, N, T, D].

    Attributes:
        location: where the store lies.
        recipe: the Recipe of every row.
        shape: [C, N, T, D].
        shard_rows: the most pictures in a shard.
    """

    location: Location
    recipe: Recipe
    shape: tuple[int, int, int, int]
    shard_rows: int

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of the arrays that the rows are kept in."""
        return row_arrays(self.recipe)

    def shards(self, pictures: int | None = None) -> list[Shard]:
        """All units of work, checkpoint by checkpoint.

        Args:
            pictures: how many there are, where that is not as many as the store has.
        """
        checkpoints = self.shape[0]
        pictures = self.shape[1] if pictures is None else pictures
        starts = range(0, pictures, self.shard_rows)
        return [
            Shard(c, number, start, min(start + self.shard_rows, pictures))
            for c in range(checkpoints)
            for number, start in enumerate(starts)
        ]

    def missing(self) -> list[Shard]:
        """The shards that are not committed, or whose files have other sizes than committed."""
        committed = {shard for shard, _ in self.committed()}
        return [shard for shard in self.shards() if shard not in committed]

    def entries(self) -> Iterator[ShardEntry]:
        """The manifest entry of every shard, in order.

        Raises:
            StoreError: a shard is missing or damaged.
        """
        missing = dict.fromkeys(self.shards())
        for shard, entry in self.committed():
            del missing[shard]
            yield entry
        if missing:
            count, first = len(missing), next(iter(missing)).name
            of_all = share(count, len(self.shards()), "shard", "is", "are")
            raise StoreError(
                f"{self.location}: {of_all} missing or damaged"
                f" ({first} first); run the same build again, it makes only those"
            )

    def committed(
        self, shards: Sequence[Shard] | None = None
    ) -> Iterator[tuple[Shard, ShardEntry]]:
        """The finished ones of all or some shards, with their manifest entries.

        Those count whose files have the sizes that the entry says.
        """
        shards = self.shards() if shards is None else shards
        names = [name for shard in shards for name in shard_file_names(shard, self.arrays)]
        sizes = self.location.sizes(names)
        contents = self.location.read_many(shard.entry for shard in shards)
        for shard, content in zip(shards, contents, strict=True):
            with suppress(ValueError):
                entry = self.entry(shard, content)
                if all(sizes.get(name) == file.bytes for name, file in entry.files.items()):
                    yield shard, entry

    def entry(self, shard: Shard, content: bytes | None) -> ShardEntry:
        """A shard's manifest entry, from the content of its file.

        Raises:
            ValueError: it is not whole; the text says what is wrong.
        """
        entry = read_record(content, ShardEntry)
        start, stop = entry.rows
        belongs = (entry.checkpoint, entry.recipe) == (shard.checkpoint, self.recipe.digest)
        if not belongs or start != shard.start:
            raise ValueError("belongs elsewhere")
        if stop < shard.stop:
            raise ValueError(f"ends at picture {stop - 1}")
        rows = range(start, start + self.shard_rows)
        are_rows = stop - 1 in rows and all(row in rows for row in entry.skipped)
        if not are_rows or entry.files.keys() != shard_file_names(shard, self.arrays).keys():
            raise ValueError("belongs elsewhere")
        return entry

    def require_large_rows(self) -> None:
        """Raise StoreError where rows are large by the recipe, and their files are not.

        A query takes memory for its own gradients of that size before it reads a row.
        """
        checkpoints, pictures, *picture = self.shape
        (name,) = {"unnormalized", "codes"}.intersection(self.arrays)
        row_bytes = math.prod(picture) * array_dtype(name).itemsize
        if checkpoints * row_bytes <= LARGE_BYTES or not pictures:
            return
        files = [f"{name}/{shard_key(name, c, 0)}" for c in range(checkpoints)]
        sizes = self.location.sizes(files)
        for file in files:
            if sizes.get(file, 0) < row_bytes:
                raise self.damage(f"{file} has no row of {row_bytes:,} bytes")

    def damaged(self, entry: ShardEntry) -> list[str]:
        """Which files of a committed shard are not as they were; every byte is read."""
        digests = {name: file.sha256 for name, file in entry.files.items()}
        return differences(self.location, digests)

    def summarize(self) -> Summary:
        """What `finish` publishes; StoreError while shards are missing."""
        state = hashlib.sha256(self.recipe.digest.encode())
        skipped: set[int] = set()
        zero_gradients = 0
        for entry in self.entries():
            digests = sorted((name, file.sha256) for name, file in entry.files.items())
            state.update(repr(digests).encode())
            skipped.update(entry.skipped)
            zero_gradients += entry.zero_gradients
        return Summary(
            recipe=self.recipe.digest,
            pictures=self.shape[1],
            state=state.hexdigest(),
            skipped=sorted(skipped),
            zero_gradients=zero_gradients,
        )

    def damage(self, what: str) -> StoreError:
        """An error that says what to do about it."""
        return StoreError(
            f"{self.location}: {what}; run the same build again with check, it mends that"
        )
