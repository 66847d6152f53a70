"""Recipe: everything that makes two gradients comparable."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from gradindex.errors import CallError, StoreError
from gradindex.wording import fewest_digits

NOISE_VERSION = 2  # raised whenever `noise` gives other numbers for the same key
PROJECTION_VERSION = 3  # raised whenever a projection of the same name and seed gives other numbers

FLOW = "flow"  # the prediction type of flow matching
CUSTOM = "custom"  # that of a user's own denoiser
LOSSES = ("mse", "l1")
LOSS, MEAN_SQUARE = OUTPUTS = ("loss", "mean-square")
NOISES = ("shared", "own", "recorded")
FILES, ALPHA = MASKS = ("files", "alpha")
MEAN, SAMPLE, NPZ = LATENTS = ("mean", "sample", "npz")
FULL, FOLDED, COMPACT = ROWS = ("full", "folded", "compact")
SEARCH_WIDTH = 4096  # numbers in a search vector, unless all rows side by side are fewer

# What follows from the parameters that are chosen, and which these are.
_OF_PARAMETERS = ("params", "part", "parameter_count")
_OF_NARROW_ROWS = ("projection", "rank", "dim")  # where rows are exact, without a projection
# Fields that came after format 1: a recipe's JSON leaves them out where they are None, so that the
# digests of stores without them stay what they were.
_OPTIONAL_FIELDS = (
    *("events", "log", "rows", "output"),
    *("picture", "encoder", "latents", "base", "captioned", "guidance"),
    *("weighting", "noise_offset", "input_perturbation", "masks", "buckets", "part"),
)

# Fields that the JSON of format 1 calls by another name, {field: name in the JSON}.
_JSON_NAMES = {"high_rank": "strong"}
_FIELD_NAMES = {json_name: name for name, json_name in _JSON_NAMES.items()}


@dataclass(frozen=True)
class Recipe:
    """Everything that makes two gradients comparable.

    Equal recipes give equal rows, up to float rounding. A recipe is frozen and hashed: a store and
    its FAISS files carry `digest`, and a query is refused when it differs. The weights of the
    checkpoints are absent on purpose: they are applied to the query and may change after the build.

    Attributes:
        model: class name.
        config: SHA-256 of the model's config without its private fields.
        checkpoints: SHA-256 of the weight files, one per checkpoint.
        scheduler: canonical JSON of the noise schedule.
        prediction_type: what the model predicts: "epsilon", "v_prediction", "sample", "flow", or
            "custom" for a denoiser of the user's own.
        image: channels, height, width of what the model takes: pictures, or their latents.
        classes: class labels are 0 … classes − 1; None for an unconditional model.
        params: regular expression that picks parameters by name; None for all trainable ones.
        parameter_count: numbers in the chosen parameters.
        dtype: of the weights while gradients are taken, "tf32" for float32 with products in TF32.
        timesteps: of the grid, whole numbers, or of float32 for flow matching; empty for recorded
            ones.
        draws: of the noise at each timestep, over which gradients are averaged.
        noise: one of `NOISES`.
        seed: of noise and projection.
        loss: one of `LOSSES`.
        projection: "two-sided", "sketch", "rademacher" or "none".
        rank: to how many inputs and outputs a two-sided projection shrinks a weight's gradient;
            None for the other projections.
        high_rank: names of the weights that it shrinks to four times as many.
        dim: D, numbers in a row.
        noise_version: `NOISE_VERSION` of the build.
        projection_version: `PROJECTION_VERSION` of the build.
        events: how many recorded events of a picture before each checkpoint; None for a grid.
        log: SHA-256 of these events' timesteps and noise; None for a grid.
        rows: "folded" for one row per picture, its search vector; "compact" for one per (c, t) in
            codes of 8 bits; None for one per (c, t).
        output: "mean-square" for gradients of the mean square of what the model gives; None for
            gradients of the loss.
        picture: channels, height, width of pictures before they are encoded; None for a model of
            pixels.
        encoder: SHA-256 of the files of VAE, text encoders and tokenizers; None likewise.
        latents: "mean" of the VAE's distribution or "sample", or "npz", those that lie beside the
            pictures; None likewise.
        base: SHA-256 of the weight files of the model that adapters were trained on; `checkpoints`
            are then those of the adapters. None: the model's own weights were trained.
        weighting: of the loss by timestep, see `gradients.weighting`; None for none.
        noise_offset: how much of a number for each whole channel is added to the noise; None: none.
        input_perturbation: how much of another noise is added to the one that pictures are mixed
            with, and not to the target; None: none.
        masks: one of `MASKS`, whence the masks come that each picture's loss is multiplied with,
            see `data.masks`; None: there are none.
        captioned: True for a model that is given captions; None for others.
        guidance: the scale that a model with guidance embedding is told; None for others.
        buckets: heights and widths of pictures as they are read, each picture in the nearest;
            `image` and `picture` are then those of the largest. None: all have the same.
        part: of the model, by a name of `gradients.parts`, whose parameters are chosen; `params` is
            then None. None: `params` chooses.
    """

    model: str
    config: str
    checkpoints: tuple[str, ...]
    scheduler: str
    prediction_type: str
    image: tuple[int, int, int]
    classes: int | None
    params: str | None
    parameter_count: int
    dtype: str
    timesteps: tuple[float, ...]
    draws: int
    noise: str
    seed: int
    loss: str
    projection: str
    rank: int | None
    high_rank: tuple[str, ...]
    dim: int
    noise_version: int = NOISE_VERSION
    projection_version: int = PROJECTION_VERSION
    events: int | None = None
    log: str | None = None
    rows: str | None = None
    output: str | None = None
    picture: tuple[int, int, int] | None = None
    encoder: str | None = None
    latents: str | None = None
    base: str | None = None
    captioned: bool | None = None
    guidance: float | None = None
    weighting: str | None = None
    noise_offset: float | None = None
    input_perturbation: float | None = None
    masks: str | None = None
    buckets: tuple[tuple[int, int], ...] | None = None
    part: str | None = None

    @property
    def pixels(self) -> tuple[int, int, int]:
        """Channels, height, width of pictures as they are read; with buckets the largest."""
        return self.picture or self.image

    @property
    def images(self) -> list[tuple[int, int, int]]:
        """The shapes of all that the model takes: `image`, or one for each of the buckets."""
        if self.buckets is None:
            return [self.image]
        factor = self.pixels[1] // self.image[1]
        channels = self.image[0]
        return [(channels, height // factor, width // factor) for height, width in self.buckets]

    @property
    def per_picture(self) -> int:
        """How many rows a picture has at one checkpoint: the length T of that axis."""
        return self.events or len(self.timesteps)

    @property
    def differentiated(self) -> str:
        """What gradients are taken of: "mse", "l1" or "mean-square"."""
        return self.output or self.loss

    @property
    def search_width(self) -> int:
        """W, numbers in a search vector: C · T · D, but at most `SEARCH_WIDTH`, or D if wider."""
        rows_side_by_side = len(self.checkpoints) * self.per_picture * self.dim
        return min(rows_side_by_side, max(SEARCH_WIDTH, self.dim))

    def shape(self, pictures: int) -> tuple[int, int, int, int]:
        """Return [C, N, T, D] of the arrays for N pictures; [1, N, 1, W] where rows are folded."""
        if self.rows == FOLDED:
            return 1, pictures, 1, self.search_width
        return len(self.checkpoints), pictures, self.per_picture, self.dim

    def exact_where_narrow(self) -> Self:
        """Return this recipe, without its two-sided projection where D is not below the parameters.

        Rows are then the gradients themselves, as many numbers as chosen parameters.
        """
        if self.rank is None or self.parameter_count > self.dim:
            return self
        return replace(self, projection="none", rank=None, dim=self.parameter_count)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, those of `_OPTIONAL_FIELDS` only where they are set."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {
            _JSON_NAMES.get(name, name): value
            for name, value in values.items()
            if value is not None or name not in _OPTIONAL_FIELDS
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the recipe of which `values` is the `to_json`.

        Raises:
            StoreError: a field is unknown or missing.
        """
        known = {_JSON_NAMES.get(field.name, field.name) for field in fields(cls)}
        unknown = values.keys() - known
        absent = known - values.keys() - set(_OPTIONAL_FIELDS)
        if unknown or absent:
            # Names come from a file: of any length and letters.
            names = ", ".join(repr(name)[1:-1][:40] for name in sorted(unknown | absent)[:5])
            raise StoreError(
                "another version of gradindex made this index"
                f" (it differs in {names}): build it again"
            )
        arguments = {_FIELD_NAMES.get(name, name): values[name] for name in values}
        return cls(**{name: _list_as_tuple(value) for name, value in arguments.items()})

    @property
    def digest(self) -> str:
        """SHA-256 hex of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Self) -> list[str]:
        """Return one text per field in which `other` differs by itself: `seed: 0, now 1`."""
        names = [field.name for field in fields(self)]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        before, after = (recipe.part or recipe.params or "all" for recipe in (self, other))
        if before != after:
            is_narrow = "none" in pairs["projection"]
            for name in _OF_PARAMETERS + _OF_NARROW_ROWS * is_narrow:
                del pairs[name]
            pairs = {"params": (before, after), **pairs}
        changed = [(name, old, new) for name, (old, new) in pairs.items() if old != new]
        return [f"{name}: {_shortened(old)}, now {_shortened(new)}" for name, old, new in changed]


def grid(timesteps: int | Sequence[float], num_train_timesteps: int) -> tuple[int, ...]:
    """Return the timesteps of a grid, sorted.

    Args:
        timesteps: a number n, for the midpoints `floor((j + 0.5) · S / n)` of n equal parts, or the
            timesteps themselves.
        num_train_timesteps: S, the scheduler's number of timesteps.

    Raises:
        CallError: there are more than S, fewer than 1, a timestep that is not whole or outside
            0 … S − 1, or one twice.

    >>> grid(10, 1000)
    (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)
    >>> grid([700, 100], 1000)
    (100, 700)
    """
    if isinstance(timesteps, int):
        require_count(timesteps, num_train_timesteps)
        return tuple((2 * j + 1) * num_train_timesteps // (2 * timesteps) for j in range(timesteps))
    chosen = to_numbers(timesteps)
    given = ", ".join(map(fewest_digits, chosen))
    if not all(t.is_integer() for t in chosen):  # neither NaN nor infinity is
        raise CallError(
            f"timesteps = [{given}]: give whole numbers (only models of flow matching have others)"
        )
    is_inside = all(0 <= t < num_train_timesteps for t in chosen)
    if not chosen or not is_inside or len(set(chosen)) < len(chosen):
        raise CallError(
            f"timesteps = [{given}]: give distinct timesteps from 0 to"
            f" {num_train_timesteps - 1} (the scheduler's range)"
        )
    return tuple(sorted(int(t) for t in chosen))


def require_count(timesteps: int, num_train_timesteps: int) -> None:
    """Raise CallError unless a scheduler has so many timesteps, and there is one or more."""
    if not 1 <= timesteps <= num_train_timesteps:
        raise CallError(
            f"timesteps = {timesteps}: give 1 to {num_train_timesteps},"
            " as many as the scheduler has"
        )


def to_numbers(timesteps: Any) -> list[float]:
    """The timesteps that a caller lists.

    Raises:
        CallError: it is no sequence of numbers.

    >>> to_numbers([999, 0.5])
    [999.0, 0.5]
    """
    try:
        if isinstance(timesteps, str):
            raise TypeError("a text, and one of digits is a sequence of numbers")
        return [float(t) for t in timesteps]
    except (TypeError, ValueError):
        raise CallError(
            f"timesteps = {timesteps!r}: give a number or a sequence of numbers"
        ) from None


def require(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise CallError unless the argument `name` has one of the `allowed` values.

    >>> require("loss", "l2", LOSSES)
    Traceback (most recent call last):
    gradindex.errors.CallError: loss = 'l2': allowed are 'mse', 'l1'
    """
    if value not in allowed:
        raise CallError(f"{name} = {value!r}: allowed are {', '.join(map(repr, allowed))}")


def require_positive(**values: int) -> None:
    """Raise CallError unless every argument is a whole number above zero.

    >>> require_positive(draws=0)
    Traceback (most recent call last):
    gradindex.errors.CallError: draws = 0: give a whole number, 1 or more
    """
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise CallError(f"{name} = {value!r}: give a whole number, 1 or more")


def require_order(
    built: Sequence[str], given: Sequence[str], paths: Sequence[str | Path], name: str, where: str
) -> None:
    """Raise CallError where checkpoints are those of an index, in another order than they had.

    Args:
        built, given: digests of the index's checkpoints, and of those at `paths`.
        name: what they are called: "checkpoints", or "adapters".
        where: the index.

    >>> require_order("ab", "ba", ["x", "y"], "adapters", "idx")
    Traceback (most recent call last):
    gradindex.errors.CallError: adapters: in another order than idx was built from; give y, x
    """
    if list(built) == list(given) or sorted(built) != sorted(given):
        return
    path_of = dict(zip(given, map(str, paths), strict=True))
    in_order = ", ".join(path_of[digest] for digest in built)
    raise CallError(f"{name}: in another order than {where} was built from; give {in_order}")


def _list_as_tuple(value: Any) -> Any:
    return tuple(map(_list_as_tuple, value)) if isinstance(value, list) else value


def _shortened(value: Any) -> str:
    """The value as JSON; a long one by its first 40 characters and 8 digits of its SHA-256."""
    text = json.dumps(value)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text if len(text) <= 60 else f"{text[:40]}… ({digest})"
