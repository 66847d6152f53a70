"""The options of a build, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from gradindex.data.dataset import Columns
from gradindex.data.training_log import MISSING
from gradindex.errors import CallError
from gradindex.gradients.projection import PROJECTIONS
from gradindex.models.devices import DTYPES
from gradindex.recipe import LOSSES, NOISES, OUTPUTS, ROWS, require, require_positive

MOST_TIMESTEPS = 100  # of a plain number: a larger one may be a timestep
EVEN = "even:"  # before a number of timesteps that is meant, however large
RECORDED = "recorded"


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
            may be more than `MOST_TIMESTEPS`; or "recorded", those of the log.
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
        params: regular expression that picks parameters by name; None for all of them.
        seed: of noise and projection.
        dtype: of the weights while gradients are taken, a key of `DTYPES`.
        batch_size: how many (picture, timestep, draw) go through the model at once, or "auto".
        skip_bad: whether pictures that cannot be read are left out, instead of stopping the build.

    Raises:
        CallError: an option has a value that is not allowed, or does not fit another one.
    """

    model: str | Path
    data: str | Path
    checkpoints: Mapping[str, float | None] | Sequence[str | Path] | None
    scheduler: str | Path | None
    columns: Columns | None
    timesteps: int | Sequence[int] | str
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

    def __post_init__(self) -> None:
        require("noise", self.noise_or_default, NOISES)
        require("loss", self.loss, LOSSES)
        require("output", self.output, OUTPUTS)
        require("projection", self.projection, PROJECTIONS)
        require("dtype", self.dtype, tuple(DTYPES))
        require("rows", self.rows, ROWS)
        require("missing", self.missing, MISSING)
        require_positive(dim=self.dim, draws=self.draws, events=self.events)
        if self.batch_size != "auto":
            require_positive(batch_size=self.batch_size)  # type: ignore[arg-type]
        self._check_recorded()
        _ = self.grid_timesteps

    @property
    def grid_timesteps(self) -> int | Sequence[int]:
        """The timesteps of a grid: how many, evenly spaced, or which; none where recorded.

        Raises:
            CallError: they are text of another form than "even:N", or so many that one timestep
                may have been meant.
        """
        timesteps = self.timesteps
        if isinstance(timesteps, str):
            if timesteps == RECORDED:
                return ()
            number = timesteps.removeprefix(EVEN)
            if number == timesteps or not (number.isascii() and number.isdecimal()):
                raise CallError(
                    f"timesteps = {timesteps!r}: give a number, a sequence of numbers,"
                    " 'even:N' or 'recorded'"
                )
            return int(number)
        if not isinstance(timesteps, Integral):
            return timesteps
        count = int(timesteps)
        if count > MOST_TIMESTEPS:
            raise CallError(
                f"timesteps = {count}: that is {count} gradients of each picture; for the timestep"
                f" {count} alone give [{count}], on the command line `--timesteps {count},`;"
                f" for {count} evenly spaced ones give '{EVEN}{count}'"
            )
        return count

    @property
    def noise_or_default(self) -> str:
        """The noise asked for; else "recorded" with a training log, and "shared" without one."""
        return self.noise or ("shared" if self.log is None else "recorded")

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
