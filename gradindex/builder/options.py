"""The options of a build, checked."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from gradindex.data.buckets import Buckets
from gradindex.data.captions import MISSING_CAPTION
from gradindex.data.dataset import Columns
from gradindex.data.training_log import MISSING
from gradindex.errors import CallError
from gradindex.gradients.projection import PROJECTIONS
from gradindex.models.devices import DTYPES
from gradindex.models.processes import Timesteps, Weighted
from gradindex.recipe import (
    LATENTS,
    LOSSES,
    MEAN,
    NOISES,
    OUTPUTS,
    ROWS,
    Recipe,
    require,
    require_positive,
)
from gradindex.store.soundness import LARGEST_SIDE

MOST_TIMESTEPS = 100  # of a plain number: a larger one may be a timestep
# How so many timesteps are chosen, by what stands before the number; it is meant, however large.
GRIDS: dict[str, Callable[[int], Timesteps]] = {"even": int, "weighted": Weighted}
RECORDED = "recorded"
# Unless told otherwise: half of ten even ones' cost, and nearly as true
# (docs/benchmarks/parts.md). Of an own denoiser's noise nothing is known that could weight them.
USUAL, USUAL_OF_OWN = Weighted(5), 10


def to_resolution(resolution: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return a side, or width and height, as height and width.

    Raises:
        CallError: they are not whole numbers above zero.

    >>> to_resolution(512), to_resolution((768, 512))
    ((512, 512), (512, 768))
    """
    if resolution is None:
        return None
    sides = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if len(sides) != 2 or not all(map(_is_side, sides)):
        raise CallError(
            f"resolution = {resolution!r}: give a side, or width and height, of at most"
            f" {LARGEST_SIDE:,} pixels"
        )
    return int(sides[1]), int(sides[0])


def to_buckets(buckets: int | Sequence[tuple[int, int]] | None) -> Buckets | None:
    """Return a step, or heights and widths of the widths and heights given.

    Raises:
        CallError: they are not whole numbers above zero, or there is no size.

    >>> to_buckets(64), to_buckets([(768, 512)])
    (64, [(512, 768)])
    """
    if buckets is None:
        return None
    if _is_side(buckets):
        return int(buckets)  # type: ignore[arg-type]
    try:
        sizes = [tuple(size) for size in buckets]  # type: ignore[union-attr]
    except TypeError:
        sizes = []
    if not sizes or not all(len(size) == 2 and all(map(_is_side, size)) for size in sizes):
        raise CallError(
            f"buckets = {buckets!r}: give the step of their sides, such as 64, or widths and"
            " heights, such as 512x768,512x512"
        )
    return [(int(height), int(width)) for width, height in sizes]


def _is_side(value: Any) -> bool:
    """Whether a value is a whole number, from 1 to `LARGEST_SIDE`."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    return is_whole and 1 <= value <= LARGEST_SIDE


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The keyword arguments of `build` that decide on rows and how they are made.

    Their defaults are those in the signature of `build`. They are checked, alone and against each
    other, when the object is made; against model, pictures and training log by `make_plan`.

    Attributes:
        model: a diffusers pipeline folder, a model folder, or a training checkpoint.
        data: a folder of pictures, or anything that `datasets` opens.
        checkpoints: {path of the weights: weight of the checkpoint}, or the paths alone; a weight
            of None is the usual one. None: the model's own weights, or all checkpoints of the log.
        scheduler: the scheduler's folder or JSON file; None: it lies beside the model.
        columns: picture, id and label columns of a `datasets` table.
        timesteps: how many, evenly spaced; or which; or "even:N", N evenly spaced, of which there
            may be more than `MOST_TIMESTEPS`; or "weighted:N", see `Weighted`; or "recorded", those
            of the log; None for the usual ones, see `begun`.
        log: what a training run drew, see `open_log`; None for a grid of timesteps.
        events: how many of a picture's last recorded events.
        missing: what a picture gets that has fewer events, one of `MISSING`.
        draws: noise draws averaged per picture and timestep.
        noise: one of `NOISES`; None for the usual one, see `noise_or_default`.
        loss: one of `LOSSES`.
        output: what gradients are taken of, one of `OUTPUTS`.
        projection: one of `PROJECTIONS`.
        dim: D, numbers in a projected row.
        rows: one of `ROWS`.
        params: name of a part of the model, see `gradients.parts`, or a regular expression that
            picks parameters by name; None for all of them.
        seed: of noise and projection.
        dtype: of the weights while gradients are taken, a key of `DTYPES`.
        batch_size: how many (picture, timestep, draw) go through the model at once, or "auto".
        caption: one for all pictures; None: each has its own.
        missing_caption: what a picture without a caption gets, one of `MISSING_CAPTION`.
        resolution: side, or width and height, of pictures before they are encoded; None: those that
            the model was made for.
        buckets: a step of the sides of buckets, or their widths and heights; None: pictures have
            one size.
        latents: one of `LATENTS`.
        guidance: the scale that a model with guidance embedding was told in training; None: 3.5.
        weighting: of the loss by timestep, see `gradients.weighting`; None for none.
        noise_offset, input_perturbation: of the training, see `Recipe`; 0 for none.
        masks: the folder of the masks of a masked loss, or "alpha"; None: it was not masked.
        denoiser: a user's own, see `models.custom`, in place of a model.
        skip_bad: whether pictures that cannot be read are left out, instead of stopping the build.
        adapters: {path of an adapter of the model: its weight}, paths alone, or one path; None:
            gradients are of the model's own weights.
        begun: of the index that is there, whose timesteps are the usual ones of the same scheduler.

    Raises:
        CallError: an option has a value that is not allowed, or does not fit another one.
    """

    model: str | Path | None
    data: str | Path
    checkpoints: Mapping[str, float | None] | Sequence[str | Path] | None
    scheduler: str | Path | None
    columns: Columns | None
    timesteps: int | Sequence[float] | str | None
    log: str | Path | None
    events: int
    missing: str
    draws: int
    noise: str | None
    loss: str
    output: str
    projection: str
    dim: int
    rows: str
    params: str | None
    seed: int
    dtype: str
    batch_size: int | str
    skip_bad: bool
    caption: str | None = None
    missing_caption: str = "error"
    resolution: int | tuple[int, int] | None = None
    buckets: int | Sequence[tuple[int, int]] | None = None
    latents: str = MEAN
    guidance: float | None = None
    weighting: str | None = None
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    masks: str | Path | None = None
    denoiser: Any = None
    adapters: Mapping[str, float | None] | Sequence[str | Path] | str | Path | None = None
    begun: Recipe | None = None

    def __post_init__(self) -> None:
        require("noise", self.noise_or_default, NOISES)
        require("loss", self.loss, LOSSES)
        require("output", self.output, OUTPUTS)
        require("projection", self.projection, PROJECTIONS)
        require("dtype", self.dtype, tuple(DTYPES))
        require("rows", self.rows, ROWS)
        require("missing", self.missing, MISSING)
        require("missing_caption", self.missing_caption, MISSING_CAPTION)
        require("latents", self.latents, LATENTS)
        require_positive(dim=self.dim, draws=self.draws, events=self.events)
        if self.batch_size != "auto":
            require_positive(batch_size=self.batch_size)  # type: ignore[arg-type]
        self._check_recorded()
        _ = self.grid_timesteps
        _ = self.picture_size
        self._check_buckets()
        self._check_training_loss()
        self._check_guidance()
        if (self.model is None) == (self.denoiser is None):
            raise CallError("model and denoiser: give one of them")
        if self.denoiser is not None and (
            self.checkpoints or self.adapters or self.scheduler or self.log
        ):
            raise CallError(
                "denoiser: it is the only checkpoint and knows its timesteps; leave out"
                " checkpoints, adapters, scheduler and log"
            )
        if self.denoiser is not None and self.latents != MEAN:
            raise CallError(f"latents = {self.latents!r}: a denoiser of your own encodes itself")
        if self.checkpoints and self.adapters:
            raise CallError(
                "checkpoints and adapters: give one of them; the adapters are the checkpoints of"
                " their run, and model is the base of them all"
            )

    @property
    def weighted_paths(self) -> Mapping[str, float | None] | Sequence[str | Path] | None:
        """The checkpoints or adapters, with their weights or without."""
        if isinstance(self.adapters, (str, Path)):
            return [self.adapters]
        return self.adapters or self.checkpoints

    @property
    def grid_timesteps(self) -> Timesteps:
        """The timesteps of a grid: how many, or which; none where recorded.

        Raises:
            CallError: they are text of another form, or so many that one timestep may have been
                meant.
        """
        timesteps = self.timesteps
        if timesteps is None:
            return USUAL if self.denoiser is None else USUAL_OF_OWN
        if isinstance(timesteps, str):
            if timesteps == RECORDED:
                return ()
            way, _, number = timesteps.rpartition(":")
            if way not in GRIDS or not (number.isascii() and number.isdecimal()):
                raise CallError(
                    f"timesteps = {timesteps!r}: give a number, a sequence of numbers,"
                    " 'even:N', 'weighted:N' or 'recorded'"
                )
            return GRIDS[way](int(number))
        if not isinstance(timesteps, Integral):
            return timesteps
        count = int(timesteps)
        if count > MOST_TIMESTEPS:
            raise CallError(
                f"timesteps = {count}: that is {count} gradients of each picture; for the timestep"
                f" {count} alone give [{count}], on the command line `--timesteps {count},`;"
                f" for {count} evenly spaced ones give 'even:{count}'"
            )
        return count

    @property
    def picture_size(self) -> tuple[int, int] | None:
        """Height and width of pictures before they are encoded, or None; see `to_resolution`."""
        return to_resolution(self.resolution)

    @property
    def bucket_choice(self) -> Buckets | None:
        """The step of the buckets, or their heights and widths, or None; see `to_buckets`."""
        return to_buckets(self.buckets)

    @property
    def noise_or_default(self) -> str:
        """The noise asked for; else "recorded" with a training log, and "shared" without one."""
        return self.noise or ("shared" if self.log is None else "recorded")

    def _check_training_loss(self) -> None:
        """Raise CallError unless noise offset, input perturbation and masks fit the rest."""
        for name in ("noise_offset", "input_perturbation"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:  # NaN is neither
                raise CallError(f"{name} = {value}: give a number, 0 or more")
            if value and self.noise_or_default == RECORDED:
                raise CallError(
                    f"{name}: recorded noise is what it was in training; leave {name} out"
                )
        if self.input_perturbation and self.denoiser is not None:
            raise CallError(
                "input_perturbation: a denoiser of your own mixes noise in itself; leave it out"
            )
        if self.masks is not None and self.denoiser is not None:
            raise CallError("masks: a denoiser of your own has one loss, its own; leave them out")

    def _check_buckets(self) -> None:
        """Raise CallError unless buckets go with the other options."""
        if isinstance(self.bucket_choice, list) and self.resolution is not None:
            raise CallError("buckets: these are the sizes of the pictures; leave out resolution")
        if self.denoiser is not None and self.buckets is not None:
            raise CallError("buckets: a denoiser of your own has one shape; leave out buckets")

    def _check_guidance(self) -> None:
        """Raise CallError unless the guidance is a number, 0 or more."""
        guidance = self.guidance
        if guidance is None:
            return
        is_number = isinstance(guidance, Real) and not isinstance(guidance, bool)
        if not is_number or not 0 <= guidance < math.inf:
            raise CallError(f"guidance = {guidance!r}: give a number, 0 or more, such as 3.5")

    def _check_recorded(self) -> None:
        """Raise CallError unless timesteps, log, events, noise and draws fit together."""
        recorded = isinstance(self.timesteps, str) and self.timesteps == RECORDED
        if recorded != (self.log is not None):
            raise CallError("timesteps = 'recorded' and log go together: give both, or neither")
        if self.log is None and (self.events != 1 or self.noise == "recorded"):
            raise CallError("events and noise = 'recorded' are for recorded timesteps")
        if self.noise_or_default == "recorded" and self.draws != 1:
            raise CallError(
                f"draws = {self.draws}: the recorded noise of an event is one; choose noise = 'own'"
                " for more"
            )
