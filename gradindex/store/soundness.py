"""Whether what a store's header says can be true.

A header may be whole by its checksum and still be wrong: changed by hand, or made to do harm. Its
numbers decide how much is read and made, and its names which files, so they are checked before
anything is made of them.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import msgspec
from msgspec import UNSET

from gradindex.data.buckets import MOST_BUCKETS
from gradindex.data.dataset import Columns
from gradindex.errors import CallError
from gradindex.recipe import COMPACT, FOLDED, LOSSES, MASKS, MEAN_SQUARE, NOISES, Recipe
from gradindex.store.array_names import CHUNK_IDS, IDS, row_arrays
from gradindex.store.records import Header, masks_of

LARGEST_SIDE = 2**16  # channels, height and width of what a model takes
LARGEST_COUNT = 2**62  # of anything: NumPy counts so far
LARGEST_FLOAT32 = 3.4e38
MOST_SHARD_ROWS = MOST_DRAWS = 2**20
# Names that `models.devices.DTYPES` and `gradients.projection.make_projection` know, without torch.
DTYPES = ("float32", "tf32", "bfloat16", "float16")
PROJECTIONS = ("two-sided", "rademacher", "sketch", "none")


def require_sound_recipe(recipe: Recipe) -> None:
    """Raise ValueError, which names a field, unless a recipe's values are of their types and sizes.

    What only the model can tell, such as the names of its weights, is not looked at.
    """
    try:
        msgspec.convert(msgspec.to_builtins(recipe), Recipe)
    except msgspec.ValidationError as error:
        raise ValueError(f"recipe: {error}") from error
    except RecursionError as error:
        raise ValueError("recipe: nested too deeply") from error
    counts = {
        "parameter_count": recipe.parameter_count,
        "dim": recipe.dim,
        "checkpoints": len(recipe.checkpoints),
        "timesteps": recipe.per_picture,
        "classes": recipe.classes,
        "rank": recipe.rank,
        "events": recipe.events,
    }
    is_sound = {name: _is_count(value) for name, value in counts.items()}
    sides = (*recipe.image, *recipe.pixels)
    is_sound["image"] = all(1 <= side <= LARGEST_SIDE for side in sides)
    buckets = ((1, 1),) if recipe.buckets is None else recipe.buckets
    is_sound["buckets"] = 1 <= len(buckets) <= MOST_BUCKETS and all(
        1 <= side <= LARGEST_SIDE for size in buckets for side in size
    )
    is_sound["timesteps"] &= all(0 <= t < LARGEST_COUNT for t in recipe.timesteps)
    is_sound["draws"] = 1 <= recipe.draws <= MOST_DRAWS
    is_sound["seed"] = abs(recipe.seed) < 2 * LARGEST_COUNT
    is_sound["dtype"] = recipe.dtype in DTYPES
    is_sound["noise"] = recipe.noise in NOISES
    is_sound["loss"] = recipe.loss in LOSSES
    is_sound["projection"] = recipe.projection in PROJECTIONS
    is_sound["rank"] &= (recipe.rank is None) == (recipe.projection != "two-sided")
    is_sound["rows"] = recipe.rows in (None, FOLDED, COMPACT)
    is_sound["output"] = recipe.output in (None, MEAN_SQUARE)
    is_sound["masks"] = recipe.masks in (None, *MASKS)
    is_sound["params"] = _is_pattern(recipe.params)
    is_sound["part"] = recipe.part is None or recipe.params is None
    _require(is_sound, "recipe: ")


def require_sound_header(header: Header, recipe: Recipe) -> None:
    """Raise ValueError, which names a field, unless a header fits its recipe and itself.

    Args:
        recipe: of the header, which `require_sound_recipe` has checked.
    """
    file_names = _file_names(recipe, len(header.files))
    checkpoints = len(recipe.checkpoints)
    is_of_rows = not header.model  # without what a query's gradient needs
    before = {} if header.before is UNSET else header.before
    paths = [header.model, header.scheduler, header.log, masks_of(header.data)]
    paths += [checkpoint.path for checkpoint in header.checkpoints]
    is_sound = {
        # So there are no more pictures than the header is long.
        "pictures": header.pictures <= len(header.files) * CHUNK_IDS,
        "shard_rows": 1 <= header.shard_rows <= MOST_SHARD_ROWS,
        "digest": header.digest == recipe.digest,
    }
    _require(is_sound)
    is_sound = {
        "chunk_rows": header.chunk_rows >= 1 and header.shard_rows % header.chunk_rows == 0,
        "files": header.files.keys() == file_names,
        "before": before.keys() <= file_names,
        "removed": all(row is None or row < header.pictures for row in header.removed.values()),
        "weights": all(abs(weight) <= LARGEST_FLOAT32 for weight in header.weights),  # not NaN
        "checkpoints": is_of_rows or len(header.checkpoints) == len(header.weights) == checkpoints,
        "parameters": header.parameters is UNSET
        or header.parameters.total >= recipe.parameter_count,
        "data": header.data is None or _is_data(header.data.source, header.data.columns),
        "model": all(path is None or is_path(path) for path in paths),
    }
    _require(is_sound)


def to_weights(weights: Iterable[Any]) -> list[float]:
    """Return the weights of checkpoints as numbers, as a header may have them.

    Raises:
        CallError: one is not a finite number of float32, or all are zero.

    >>> to_weights([1, 0.5])
    [1.0, 0.5]
    """
    fault = f"checkpoint weights {weights}: give finite numbers, not all of them zero"
    try:
        numbers = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        raise CallError(fault) from None
    if not (all(abs(number) <= LARGEST_FLOAT32 for number in numbers) and any(numbers)):
        raise CallError(fault)  # NaN is not less than anything
    return numbers


def is_path(text: str) -> bool:
    r"""Return whether a text can be a path.

    >>> is_path("a/b.png"), is_path("a\0b"), is_path("\ud800")
    (True, False, False)
    """
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _require(is_sound: dict[str, bool], prefix: str = "") -> None:
    """Raise ValueError with the name of the first field that is not sound."""
    for name, is_one in is_sound.items():
        if not is_one:
            raise ValueError(f"{prefix}{name}")


def _is_count(value: int | None) -> bool:
    return value is None or 1 <= value < LARGEST_COUNT


def _is_pattern(params: str | None) -> bool:
    """Whether a text is a regular expression."""
    try:
        re.compile(params or "")
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _file_names(recipe: Recipe, count: int) -> set[str]:
    """The names of so many files that a header has the digests of: of metadata, and of ids."""
    metadata = [f"{name}/zarr.json" for name in (*row_arrays(recipe), IDS)]
    return {*metadata, *(f"{IDS}/c/{number}" for number in range(count - len(metadata)))}


def _is_data(source: str, columns: dict[str, str | None]) -> bool:
    """Whether a data source can be opened again, as far as can be seen."""
    return is_path(source) and columns.keys() <= {field.name for field in fields(Columns)}
