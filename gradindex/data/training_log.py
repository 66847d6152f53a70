"""What a training run drew, and each picture's last events before a checkpoint.

`open_log` reads the folder of a `TrainingRecorder` (log_folder.py) or a table (log_table.py).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradindex.data.log_events import EVENT, LoggedCheckpoint
from gradindex.data.log_file import UNKNOWN
from gradindex.data.log_folder import read_folder
from gradindex.data.log_table import read_table
from gradindex.data.log_values import is_inside
from gradindex.errors import CallError
from gradindex.recipe import grid
from gradindex.wording import counted

MISSING = ("error", "skip", "grid")  # what pictures with too few events get
NO_EVENT = (np.nan, UNKNOWN, 0)  # the EVENT of a picture that is left out
NAMED_PICTURES = 10  # ids that an error names before it only counts


@dataclass(frozen=True)
class TrainingLog:
    """The events of a training run, in the order of steps.

    Attributes:
        source: where it was read from.
        sample_ids: ids of the pictures, which `events["sample"]` numbers.
        events: one for each step and picture, LOGGED_EVENT [E]: sample, step, timestep,
            noise_seed, draw.
        checkpoints: those that the log knows, in the order of steps.
        num_train_timesteps: what the recorder was made for; None for a table.
    """

    source: Path
    sample_ids: list[str]
    events: np.ndarray
    checkpoints: list[LoggedCheckpoint]
    num_train_timesteps: int | None

    def find(self, paths: Sequence[Path]) -> list[LoggedCheckpoint]:
        """Return the checkpoints at these paths, or all that the log knows when none are given.

        Where a table knows only steps, a checkpoint's step is the number at the end of its name,
        `checkpoint-500`.

        Raises:
            CallError: the log does not know one of them.
        """
        if not paths:
            return self.checkpoints
        known = {Path(checkpoint.path).resolve(): checkpoint for checkpoint in self.checkpoints}
        if not known:
            known = _checkpoints_by_name(paths)
        checkpoints = []
        for path in paths:
            checkpoint = known.get(path.resolve())
            if checkpoint is None or checkpoint.step == 0:
                names = ", ".join(checkpoint.path for checkpoint in self.checkpoints)
                raise CallError(
                    f"log {self.source}: knows no training before checkpoint {path};"
                    f" it knows {names or 'none; name them like checkpoint-500'}"
                )
            checkpoints.append(checkpoint)
        return checkpoints

    def last_events(self, sample_ids: Sequence[str], step: int, count: int) -> np.ndarray:
        """Return each picture's last events before a step, oldest first: EVENT [N, count].

        A picture that has fewer than `count` has NaN as its first timesteps.

        Args:
            sample_ids: N ids of the pictures.
            step: only events of smaller steps are taken.
            count: how many events of each picture.
        """
        row_of = {name: row for row, name in enumerate(sample_ids)}
        rows = np.array([row_of.get(name, -1) for name in self.sample_ids], np.int64)
        events = self.events[self.events["step"] < step]
        owners = rows[events["sample"]]  # the row of each event's picture; −1: not among the ids
        events, owners = events[owners >= 0], owners[owners >= 0]

        # Group the events by picture. The sort is stable, so within a picture steps stay in order.
        order = np.argsort(owners, kind="stable")
        events, owners = events[order], owners[order]

        # Count each event from the end of its picture's group; 1 is the last one.
        group_ends = np.searchsorted(owners, owners, side="right")
        from_end = group_ends - np.arange(len(owners))
        is_last = from_end <= count
        last = np.zeros((len(sample_ids), count), EVENT)
        last["timestep"] = np.nan
        for name in EVENT.names or ():
            last[name][owners[is_last], count - from_end[is_last]] = events[name][is_last]
        return last

    def require_pictures(self, sample_ids: Sequence[str], missing: str) -> None:
        """Check that the log is of these pictures; with `missing` = "skip" it may be of more.

        Raises:
            CallError: it is of other pictures.
        """
        unknown = sorted(set(self.sample_ids) - set(sample_ids))
        if len(unknown) == len(self.sample_ids):
            raise CallError(
                f"log {self.source}: of another data set; it has ids like {unknown[0]!r},"
                f" the data {sample_ids[0]!r}"
            )
        if unknown and missing != "skip":
            raise CallError(
                f"log {self.source}: {len(unknown)} of its pictures are not in the data,"
                f" such as {unknown[0]!r}; missing = 'skip' leaves them out"
            )

    def replay(
        self,
        sample_ids: Sequence[str],
        steps: Sequence[int],
        count: int,
        missing: str,
        num_train_timesteps: int,
        flow_grid: Callable[[int], Sequence[float]] | None = None,
    ) -> np.ndarray:
        """Return the events at which every picture's rows are taken, EVENT [C, N, count].

        A picture that is left out has NaN as its timesteps, at every checkpoint.

        Args:
            sample_ids: N ids of the pictures.
            steps: of the C checkpoints.
            count: how many of the last events before each checkpoint.
            missing: what a picture with fewer events gets: "error", "skip" (it is left out), or
                "grid" (evenly spaced timesteps in place of those it lacks, with noise of its own).
            num_train_timesteps: of the model's scheduler.
            flow_grid: of a model of flow matching: n → n timesteps, evenly spread over training;
                None for a model with whole timesteps.

        Raises:
            CallError: events are missing, the log is of other pictures, or of another scheduler.
        """
        self.require_pictures(sample_ids, missing)
        self._require_scheduler(num_train_timesteps, is_flow=flow_grid is not None)
        events = np.stack([self.last_events(sample_ids, step, count) for step in steps])
        lacking = np.isnan(events["timestep"])
        incomplete = np.flatnonzero(lacking.any((0, 2)))  # rows of pictures that lack an event
        leaves_none = missing == "skip" and len(incomplete) == len(sample_ids)
        if incomplete.size and (missing == "error" or leaves_none):
            raise self._too_few_events([sample_ids[row] for row in incomplete.tolist()], count)
        if missing == "grid":
            _fill_with_grid(events, lacking, flow_grid or (lambda n: grid(n, num_train_timesteps)))
        else:
            events[:, incomplete] = NO_EVENT
        return events

    def _require_scheduler(self, num_train_timesteps: int, *, is_flow: bool) -> None:
        """Raise CallError unless all timesteps are some that the model's scheduler has."""
        timesteps = self.events["timestep"]
        outside = timesteps[~is_inside(timesteps, num_train_timesteps, is_flow=is_flow)]
        if outside.size:
            difference = f"timestep {outside[0]:g}"
        elif self.num_train_timesteps not in (None, num_train_timesteps):
            difference = f"{self.num_train_timesteps} timesteps"
        else:
            return
        allowed = f"whole ones, 0 to {num_train_timesteps - 1}"
        if is_flow:
            allowed = f"those above 0, up to {num_train_timesteps} (flow matching)"
        raise CallError(
            f"log {self.source}: of another scheduler: {difference}, the model's has {allowed}"
        )

    def _too_few_events(self, sample_ids: Sequence[str], count: int) -> CallError:
        """Return the error that names pictures with fewer than `count` events."""
        names = ", ".join(repr(name)[1:-1][:80] for name in sample_ids[:NAMED_PICTURES])
        if len(sample_ids) > NAMED_PICTURES:
            names += f" and {len(sample_ids) - NAMED_PICTURES} more"
        return CallError(
            f"log {self.source}:"
            f" {counted(len(sample_ids), 'picture has', 'pictures have')} fewer than"
            f" {counted(count, 'event')}"
            f" before a checkpoint: {names}; missing = 'skip' leaves them out,"
            " 'grid' gives them evenly spaced timesteps"
        )


def training_weights(checkpoints: Sequence[LoggedCheckpoint]) -> list[float]:
    """Return each checkpoint's learning rate times its share of training.

    Its share is the steps since the checkpoint before it, over all steps. TracIn sums over
    checkpoints with the learning rate as weight (Pruthi et al. 2020, TracInCP).

    >>> training_weights([LoggedCheckpoint(1, "a", 0.5), LoggedCheckpoint(4, "b", 0.25)])
    [0.125, 0.1875]
    """
    steps = sorted({0, *(checkpoint.step for checkpoint in checkpoints)})
    step_before = dict(zip(steps[1:], steps, strict=False))
    weights = []
    for checkpoint in checkpoints:
        trained = checkpoint.step - step_before.get(checkpoint.step, 0)
        weights.append(checkpoint.lr * trained / max(1, steps[-1]))
    return weights


def open_log(source: str | Path) -> TrainingLog:
    """Return the training log in a recorder's folder, or in a CSV or Parquet table.

    A table has columns sample_id, timestep, and step (how many were done before, so from 0; the
    last before checkpoint-500 is 499) or checkpoint (a path, in the order of training), and, where
    the noise is `gradindex.noise(noise_seed, sample_id, timestep, step or 0, shape)`, noise_seed.

    Raises:
        CallError: nothing is there, or a column is missing. DataError: it is damaged.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     table = Path(folder, "log.csv")
    ...     _ = table.write_text("sample_id,timestep,step,noise_seed\\na.png,500,0,7\\n")
    ...     open_log(table).last_events(["a.png"], step=1, count=1)["timestep"]
    array([[500.]], dtype=float32)
    """
    source = Path(source)
    if not source.exists():
        raise CallError(f"log {source}: no such file or folder")
    run = read_folder(source) if source.is_dir() else read_table(source)
    if not len(run.events):
        raise CallError(f"log {source}: holds no event")
    return TrainingLog(source, run.sample_ids, run.events, run.checkpoints, run.num_train_timesteps)


def _checkpoints_by_name(paths: Sequence[Path]) -> dict[Path, LoggedCheckpoint]:
    """Return {absolute path: checkpoint} of those paths whose names end in their step.

    >>> list(_checkpoints_by_name([Path("checkpoint-500"), Path("final")]).values())
    [LoggedCheckpoint(step=500, path='checkpoint-500', lr=1.0)]
    """
    checkpoints = {}
    for path in paths:
        number = re.search(r"\d+$", path.name)
        if number:
            checkpoints[path.resolve()] = LoggedCheckpoint(int(number[0]), str(path), 1.0)
    return checkpoints


def _fill_with_grid(
    events: np.ndarray, lacking: np.ndarray, make_grid: Callable[[int], Sequence[float]]
) -> None:
    """Write evenly spaced timesteps in place of the events that a picture lacks.

    Args:
        events: EVENT [C, N, count]. lacking: where there is no event, [C, N, count] bool.
        make_grid: n → n timesteps.
    """
    for c, row in zip(*np.nonzero(lacking.any(2)), strict=True):
        absent = np.flatnonzero(lacking[c, row])
        timesteps = make_grid(len(absent))
        events[c, row, absent] = [(timestep, UNKNOWN, 0) for timestep in timesteps]
