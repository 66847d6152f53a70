"""Recipe: everything that makes two gradients comparable."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from gradindex.errors import CallError, StoreError

NOISE_VERSION = 2  # raised whenever `noise` gives other numbers for the same key
PROJECTION_VERSION = 3  # raised whenever a projection of the same name and seed gives other numbers

_LATER = ("events", "log", "rows", "output")  # fields that older stores, and most new ones, do without
LOSSES = ("mse", "l1")
LOSS, MEAN_SQUARE = OUTPUTS = ("loss", "mean-square")
NOISES = ("shared", "own", "recorded")
FULL, FOLDED = ROWS = ("full", "folded")
SEARCH_WIDTH = 4096


@dataclass(frozen=True)
class Recipe:
    """Everything that makes two gradients comparable; equal recipes give equal rows, up to float rounding.

    Frozen and hashed: a store and its FAISS files carry `digest`, and a query is refused when it differs.
    Checkpoint weights are absent on purpose: they are applied to the query and may change after the build.
    """

    model: str  # class name
    config: str  # SHA-256 of the model's config, its private fields left out
    checkpoints: tuple[str, ...]  # SHA-256 of the weight files, one per checkpoint
    scheduler: str  # canonical JSON of the noise schedule
    prediction_type: str
    image: tuple[int, int, int]  # channels, height, width
    classes: int | None  # class labels are 0 … classes - 1; None: unconditional
    params: str | None  # regular expression that picks parameters by name; None: all trainable ones
    parameter_count: int
    dtype: str  # of the weights while gradients are taken
    timesteps: tuple[int, ...]  # of the grid; empty for recorded ones
    draws: int
    noise: str
    seed: int
    loss: str
    projection: str
    rank: int | None  # to how many inputs and outputs a two-sided projection shrinks a weight's gradient
    strong: tuple[str, ...]  # weights that it shrinks to four times as many
    dim: int
    noise_version: int = NOISE_VERSION
    projection_version: int = PROJECTION_VERSION
    events: int | None = None  # of a picture's training before each checkpoint, in place of a grid
    log: str | None = None  # SHA-256 of these events' timesteps and noise
    rows: str | None = None  # "folded": one row per picture, its search vector, in place of one per (c, t)
    output: str | None = None  # "mean-square": gradients of that of what the model gives, not of the loss

    @property
    def per_picture(self) -> int:
        """Rows of a picture at one checkpoint: the length T of that axis."""
        return self.events or len(self.timesteps)

    @property
    def differentiated(self) -> str:
        """What gradients are taken of: "mse", "l1" or "mean-square"."""
        return self.output or self.loss

    @property
    def search_width(self) -> int:
        """Numbers in a picture's search vector: all of its rows side by side, or folded into SEARCH_WIDTH."""
        return min(len(self.checkpoints) * self.per_picture * self.dim, max(SEARCH_WIDTH, self.dim))

    def shape(self, pictures: int) -> tuple[int, int, int, int]:
        """[C, N, T, D] of the arrays for so many pictures; C and T are 1 where rows are folded."""
        if self.rows == FOLDED:
            return 1, pictures, 1, self.search_width
        return len(self.checkpoints), pictures, self.per_picture, self.dim

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; without those of a training log where there is none."""
        values = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in values.items() if value is not None or name not in _LATER}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        known = {field.name for field in fields(cls)}
        if odd := (values.keys() ^ known) - set(_LATER) | (values.keys() - known):
            names = ", ".join(sorted(odd))
            raise StoreError(f"another version of gradindex made this index (it differs in {names}): build it again")
        return cls(**{name: _frozen(value) for name, value in values.items()})

    @property
    def digest(self) -> str:
        """SHA-256 hex of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Self) -> list[str]:
        """One text per field in which `other` differs: `seed: 0, now 1`."""
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return [f"{name}: {_short(mine)}, now {_short(theirs)}" for name, mine, theirs in pairs if mine != theirs]


def grid(timesteps: int | Sequence[int], num_train_timesteps: int) -> tuple[int, ...]:
    """The timesteps of a grid: midpoints `floor((j + 0.5) · S / n)` for a number n, or the given ones, sorted.

    >>> grid(10, 1000)
    (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)
    """
    if isinstance(timesteps, int):
        if not 1 <= timesteps <= num_train_timesteps:
            raise CallError(f"timesteps = {timesteps}: give 1 to {num_train_timesteps}, as many as the scheduler has")
        return tuple((2 * j + 1) * num_train_timesteps // (2 * timesteps) for j in range(timesteps))
    if isinstance(timesteps, str):
        raise CallError(f"timesteps = {timesteps!r}: give a number or a sequence of numbers, not text")
    chosen = tuple(sorted(int(t) for t in timesteps))
    outside = [t for t in chosen if not 0 <= t < num_train_timesteps]
    if not chosen or outside or len(set(chosen)) < len(chosen):
        raise CallError(
            f"timesteps = {list(timesteps)}: give distinct timesteps from 0 to {num_train_timesteps - 1}"
            " (the scheduler's range)"
        )
    return chosen


def require(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise CallError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise CallError(f"{name} = {value!r}: allowed are {', '.join(map(repr, allowed))}")


def require_positive(**values: int) -> None:
    """Raise CallError unless every value is a whole number above zero."""
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise CallError(f"{name} = {value!r}: give a whole number, 1 or more")


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}… ({hashlib.sha256(text.encode()).hexdigest()[:8]})"
