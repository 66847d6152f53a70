"""The JSON records of a store, checked where they are read."""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from gradindex.data.dataset import FINGERPRINT_DIGITS
from gradindex.data.picture_facts import CONTENT_DIGITS, NO_CONTENT, NO_STAT, STAT_DIGITS
from gradindex.models.trainer_notes import TrainerNotes

Record = TypeVar("Record", bound=msgspec.Struct)
# A JSON number has no bounds; these fit everywhere.
Number = Annotated[int, msgspec.Meta(gt=-(2**62), lt=2**62)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class ShardFile(msgspec.Struct, frozen=True):
    """One array's file of a shard: its size in bytes and its SHA-256 hex."""

    bytes: Count
    sha256: str


class ShardEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """The manifest entry of a committed shard.

    Attributes:
        rows: the first picture, and the one after the last.
        recipe: digest of the Recipe.
        zero_gradients: how many of the rows are zero, those of skipped pictures not counted.
        skipped: row numbers without a picture.
        pictures: the pictures' `Dataset.fingerprint`s one after the other; may be empty.
        files: {name: ShardFile} for every array.
        contents: digests of the pictures' bytes that were read, see `content_digest`, one after the
            other; `NO_CONTENT` for a picture whose bytes were not; empty in earlier versions.
        stats: digests of their files' sizes, times and inodes, see `FileStats`, likewise.
    """

    checkpoint: int
    rows: tuple[int, int]
    recipe: str
    zero_gradients: Number
    skipped: list[Count]
    pictures: str
    files: dict[str, ShardFile]
    contents: str = ""
    stats: str = ""

    def fingerprint(self, row: int) -> str:
        """The `Dataset.fingerprint` of the picture that a row was made from; empty if not known."""
        return self._digits(self.pictures, row, FINGERPRINT_DIGITS)

    def content(self, row: int) -> str:
        """The `content_digest` of the picture of a row; `NO_CONTENT` if not known."""
        return self._digits(self.contents, row, CONTENT_DIGITS) or NO_CONTENT

    def stat(self, row: int) -> str:
        """What `FileStats` gave for the picture of a row; `NO_STAT` if not known."""
        return self._digits(self.stats, row, STAT_DIGITS) or NO_STAT

    def _digits(self, text: str, row: int, count: int) -> str:
        """What a text says of a row, which has so many digits for each."""
        start = (row - self.rows[0]) * count
        return text[start : start + count]


class Summary(msgspec.Struct, frozen=True):
    """What the last finished build left.

    Attributes:
        recipe: digest of the Recipe.
        pictures: N.
        state: SHA-256 over the recipe and all row files.
        skipped: row numbers that the build skipped at some checkpoint.
        zero_gradients: rows that are zero though there was a picture.
    """

    recipe: str
    pictures: Count
    state: str
    skipped: list[Count]
    zero_gradients: Number


class CheckpointPath(msgspec.Struct, frozen=True):
    """Where a checkpoint's weights were when the index was built."""

    path: str


class DataSource(msgspec.Struct, frozen=True):
    """What `open_dataset` needs to open the training pictures again.

    Attributes:
        source: see `open_dataset`.
        columns: fields of `Columns`.
        caption: the one of all pictures, where one was given.
        masks: the folder of masks, or "alpha", where the loss was masked.
    """

    source: str
    columns: dict[str, str | None]
    caption: str | UnsetType = UNSET
    masks: str | UnsetType = UNSET


class ParameterChoice(msgspec.Struct, frozen=True):
    """Which parameters of a model the rows are the gradients of, for people to read.

    Attributes:
        total: numbers in all trainable parameters.
        places: in short where the chosen ones are, such as "up_blocks.1, conv_out".
    """

    total: Count
    places: str


def masks_of(data: DataSource | None) -> str | None:
    """Return the folder of masks that a build was given, or "alpha"; None: its loss has none."""
    return None if data is None or data.masks is UNSET else data.masks


def one_caption(data: DataSource | None) -> str | None:
    """Return the caption that a build was given for all pictures; None: each has its own."""
    return None if data is None or data.caption is UNSET else data.caption


class Header(msgspec.Struct, frozen=True):
    """What a store is made of and what made it; zarr.json and its copy hold it.

    Attributes:
        format: version of the store's format.
        recipe, digest: the Recipe as JSON values, and its digest.
        pictures: N, those that a running build adds included.
        shard_rows, chunk_rows: pictures in a shard and in a chunk.
        files: {name: SHA-256} of the arrays' metadata and the ids.
        removed: {`id_key` of an id: its row}; None for a row that `compact` erased. Pictures that
            were removed since have files of their own, see `removals`; a `Store` adds these.
        model, scheduler, checkpoints, data, log: where things were when the index was built.
        weights: one per checkpoint, applied to queries.
        before: what `files` was before the store grew, as far as it changed.
        trainer: what the trainer of an adapter says of its run, where it says anything.
        parameters: which were chosen, where they are not all.
    """

    format: int
    recipe: dict[str, Any]
    digest: str
    pictures: Count
    shard_rows: Count
    chunk_rows: Count
    files: dict[str, str]
    removed: dict[str, Count | None]
    model: str = ""
    scheduler: str | None = None
    checkpoints: list[CheckpointPath] = []
    weights: list[int | float] = []
    data: DataSource | None = None
    log: str | None = None
    before: dict[str, str] | UnsetType = UNSET
    trainer: TrainerNotes | UnsetType = UNSET
    parameters: ParameterChoice | UnsetType = UNSET


def to_json(record: Any) -> Any:
    """A record as JSON values, its fields in their order; those that are not set are left out."""
    return msgspec.to_builtins(record, enc_hook=_plain)


def _plain(value: Any) -> Any:
    """A NumPy scalar, or a subclass of str that a caller gave, as what JSON has."""
    if isinstance(value, str):
        return str.__str__(value)
    if hasattr(value, "item"):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} is not a JSON value")


def from_json(values: Any, kind: type[Record]) -> Record:
    """The record of a kind that JSON values stand for.

    Raises:
        ValueError: a field is absent, unknown or of another type; the text names it.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
