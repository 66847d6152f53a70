"""Check what a training loop logs, and turn it into Python values: ids, steps and seeds."""

import operator
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from gradindex.errors import CallError


def checked_ids(sample_ids: Sequence[Any]) -> list[str]:
    """Return ids as text: of texts, paths and whole numbers, in a list, tensor or array.

    Raises:
        CallError: one is of another type.

    >>> from pathlib import Path
    >>> checked_ids(["a.png", Path("b/c.png"), 4])
    ['a.png', 'b/c.png', '4']
    """
    if isinstance(sample_ids, str):
        raise CallError(f"sample_ids = {sample_ids!r}: give a sequence of ids, not text")
    ids = []
    for item in to_python(sample_ids):
        name = to_python(item)
        if not isinstance(name, str | int | os.PathLike):
            raise CallError(f"sample_ids: {name!r} is not an id; give text, paths or whole numbers")
        ids.append(_path_text(name) if isinstance(name, os.PathLike) else str(name))
    return ids


def _path_text(path: os.PathLike[Any]) -> str:
    """Return a path as the ids of a data set are written, with `/` on Windows too.

    >>> from pathlib import PureWindowsPath
    >>> _path_text(PureWindowsPath("a/b.png"))
    'a/b.png'
    """
    return path.as_posix() if isinstance(path, PurePath) else os.fsdecode(path)


def relative_path(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, with `/`, so that both can be moved together.

    Where there is none, as between two drives of Windows, it is the path itself.

    >>> relative_path(Path("/run/checkpoint-1"), Path("/run/log"))
    '../checkpoint-1'
    """
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.as_posix()


def whole_number(step: Any) -> int:
    """Return a step, a whole number of any type such as NumPy's or a tensor, as an int.

    Raises:
        CallError: it is no whole number.
    """
    try:
        return operator.index(step)
    except TypeError as error:
        raise CallError(f"step = {step!r}: give a whole number") from error


def flow_grid(timesteps: Any, count: int) -> np.ndarray:
    """Return the timesteps of a flow matching scheduler, [count] float32, in its order.

    Raises:
        CallError: they are not as many, or not above 0 and up to `count`.

    >>> flow_grid([4, 3.6, 3, 2], count=4).tolist()
    [4.0, 3.5999999046325684, 3.0, 2.0]
    """
    grid = np.array(to_python(timesteps), "<f4")
    if grid.shape != (count,) or not is_inside(grid, count, is_flow=True).all():
        raise CallError(
            f"timesteps of shape {grid.shape}: give those of a flow matching scheduler as it was"
            f" made, before set_timesteps: {count} numbers above 0, up to {count}"
        )
    return grid


def checked_timesteps(timesteps: Any, count: int, *, is_flow: bool) -> np.ndarray:
    """Return what a sampler drew, [B] float32.

    Args:
        timesteps: B numbers: whole ones, 0 to `count` − 1, or of flow matching: any above 0, up to
            `count`.
        count: the scheduler's number of timesteps.

    Raises:
        CallError: one is none of these.
    """
    drawn = np.array(to_python(timesteps), "<f4")
    odd = drawn[~is_inside(drawn, count, is_flow=is_flow)]
    if odd.size and is_flow:
        raise CallError(
            f"timestep {odd.flat[0]:g}: the recorder was made for numbers above 0, up to {count}"
        )
    if odd.size:
        raise CallError(
            f"timestep {odd.flat[0]:g}: the recorder was made for 0 to {count - 1}, whole; for flow"
            " matching give it the timesteps of the scheduler (scheduler.timesteps)"
        )
    return drawn


def is_inside(timesteps: np.ndarray, count: int, *, is_flow: bool) -> np.ndarray:
    """Return whether a scheduler has each of some timesteps, bool of their shape; NaN is none."""
    if is_flow:
        return (timesteps > 0) & (timesteps <= count)
    with np.errstate(invalid="ignore"):
        return (timesteps >= 0) & (timesteps < count) & (np.floor(timesteps) == timesteps)


def checked_seed(seed: int) -> int:
    """Return a seed as an int that eight bytes hold and that is not negative.

    Raises:
        CallError: it is negative or too large.
    """
    if not 0 <= seed < 2**63:
        raise CallError(f"seed {seed}: give 0 to 2⁶³ − 1")
    return int(seed)


def to_python(values: Any) -> Any:
    """Return the Python numbers of a tensor or array, and anything else as it is."""
    return values.tolist() if hasattr(values, "tolist") else values
