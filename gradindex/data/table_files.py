"""The rows of a table in files: Parquet, the metadata of an image folder, a data set of the hub."""

import glob
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gradindex.data.splits import TRAIN
from gradindex.errors import CallError, first_line

if TYPE_CHECKING:
    import datasets
    import pyarrow

HUB_SECONDS = 10  # in which the hub must answer


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep `datasets` from logging, beside its error, what an error of ours says in one line."""
    handlers = logging.getLogger("datasets").handlers
    for handler in handlers:
        handler.addFilter(_is_no_error)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_no_error)


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def read_parquet(files: Sequence[Path]) -> "datasets.Dataset":
    """Return the rows of Parquet files, one file after the other."""
    import datasets

    # `datasets` takes paths for patterns. And it takes a file of the time of another for that file:
    # a folder of its cache for each state of the files tells them apart.
    paths = [str(file.absolute()) for file in files]
    states = [
        (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        for status in (file.stat() for file in files)
    ]
    digest = hashlib.sha256(repr([paths, states]).encode()).hexdigest()[:16]
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "gradindex" / digest
    patterns = {"train": [glob.escape(name) for name in paths]}
    return datasets.load_dataset(
        "parquet", data_files=patterns, split="train", cache_dir=str(cache)
    )


def read_metadata(metadata: Path) -> "pyarrow.Table":
    """Return the rows of a metadata file, read as `datasets` reads it.

    Raises:
        ValueError: it cannot be read; the file is named.
    """
    try:
        return _read_rows(metadata)
    except Exception as error:  # whatever pandas and pyarrow raise
        raise ValueError(f"{metadata.name}: {first_line(error)}") from error


def _read_rows(metadata: Path) -> "pyarrow.Table":
    import pandas
    import pyarrow
    from pyarrow import json as arrow_json
    from pyarrow import parquet

    if metadata.suffix == ".parquet":
        return parquet.read_table(metadata)
    if metadata.suffix == ".csv":
        with warnings.catch_warnings():
            # Where rows are longer than the headings, pandas would take their first cell for a
            # name of the row, and every column for the one before it.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame = pandas.read_csv(metadata, index_col=False)
        return pyarrow.Table.from_pandas(frame, preserve_index=False)
    content = metadata.read_bytes().removeprefix(b"\xef\xbb\xbf")
    options = arrow_json.ReadOptions(block_size=len(content) + 1)
    return arrow_json.read_json(io.BytesIO(content), read_options=options)


def read_hub(source: str) -> "datasets.Dataset":
    """Return the rows for training of a data set on the hub.

    Raises:
        CallError: the hub does not answer; or the set is divided otherwise: it has no split of that
            name, or several configurations.
    """
    import datasets

    _require_answer(source)
    try:
        return datasets.load_dataset(source, split=TRAIN)
    except ValueError as error:
        raise CallError(
            f"data {source}: {' '.join(str(error).split())}; load with `datasets` the part that"
            " the model was trained on, save it with save_to_disk(FOLDER), and give that folder"
        ) from error


def _require_answer(source: str) -> None:
    """Raise CallError where the hub does not answer, which `datasets` finds out in half a minute.

    What it answers of the set is for `datasets` to say.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HfHubHTTPError, OfflineModeIsEnabled

    try:
        HfApi().dataset_info(source, timeout=HUB_SECONDS)
    except (HfHubHTTPError, OfflineModeIsEnabled):
        return
    except Exception as error:  # of the network, or of a name that cannot be
        raise CallError(
            f"data {source}: no such file or folder, and the Hugging Face hub does not answer"
            f" ({first_line(error)}); HF_HUB_OFFLINE=1 takes a set of it that was downloaded before"
        ) from error


def parquet_types(file: Path) -> dict[str, str]:
    """Return {column: what it holds} of a Parquet file; {} where it cannot be read.

    What it holds is the type's name to `datasets`, such as "Image", or that of Arrow.
    """
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(file)
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted.get("info", {}).get("features", {})
    except Exception:  # whatever pyarrow raises
        return {}
    types = {}
    for column in schema:
        kind = features.get(column.name)
        kind = kind.get("_type") if isinstance(kind, dict) else None
        types[column.name] = kind if kind not in (None, "Value") else str(column.type)
    return types
