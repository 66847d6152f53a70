"""The noise schedule beside a model.

A schedule is the configuration of a diffusers scheduler, an open dict: diffusers reads it whole,
and only `SCHEDULE_FIELDS` go into a `Recipe`.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from gradindex.errors import CallError, ModelError, first_line, quoted
from gradindex.models.folder import read_json, shortened

SCHEDULER_FILE = "scheduler_config.json"
# What decides ᾱ_t, the share of a picture's variance that is left of it at timestep t.
SCHEDULE_FIELDS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MOST_TIMESTEPS = 2**20


def find_scheduler(folder: Path, scheduler: str | Path | None, model: str | Path | None) -> Path:
    """Return the scheduler's JSON file.

    Args:
        folder: the model's folder, looked through with the two around it.
        scheduler: the file itself, or a folder that holds it; then no other is looked through.
        model: the run's model, from whose folder a checkpoint takes the scheduler.

    Raises:
        CallError: there is none.
    """
    if scheduler is not None:
        files = [Path(scheduler), *_scheduler_files(Path(scheduler))]
    else:
        folders = [folder, *list(folder.resolve().parents)[:2]]
        if model:
            folders += [Path(model), Path(model).resolve().parent]
        files = [file for parent in folders for file in _scheduler_files(parent)]
    for file in files:
        if file.is_file():
            return file
    raise CallError(
        f"{scheduler or folder}: no {SCHEDULER_FILE} found; name its folder with --scheduler"
    )


def read_schedule(file: Path) -> dict[str, Any]:
    """Return the schedule in a scheduler's JSON file, with a `prediction_type`.

    Raises:
        ModelError: the file is not JSON, or not of a scheduler with betas for a number of
            timesteps.
    """
    schedule = read_json(file)
    is_known = "beta_schedule" in schedule or is_flow(schedule)
    if not is_known or "num_train_timesteps" not in schedule:
        raise ModelError(
            f"{file}: scheduler {schedule.get('_class_name')!r} has no beta schedule;"
            " give a DDPM-like one, or one of flow matching"
        )
    timesteps = schedule["num_train_timesteps"]
    is_count = isinstance(timesteps, int) and not isinstance(timesteps, bool)
    if not is_count or not 1 <= timesteps <= MOST_TIMESTEPS:
        raise ModelError(
            f"{file}: num_train_timesteps = {shortened(timesteps)}: allowed is a whole number, 1 to"
            f" {MOST_TIMESTEPS}"
        )
    schedule = {**schedule, "prediction_type": schedule.get("prediction_type", "epsilon")}
    if is_flow(schedule):
        _require_shift(schedule, file)
    else:
        _require_betas(schedule, file)
    return schedule


def is_flow(schedule: dict[str, Any]) -> bool:
    """Return whether a schedule is one of flow matching.

    >>> is_flow({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    True
    """
    name = schedule.get("_class_name")
    is_flow_class = isinstance(name, str) and name.startswith("FlowMatch")
    return is_flow_class or schedule.get("prediction_type") == "flow_prediction"


def flow_shift(schedule: dict[str, Any]) -> float:
    """Return the static shift of a flow matching schedule; 1 where it shifts with the resolution.

    >>> flow_shift({"shift": 3.0, "use_dynamic_shifting": True})
    1.0
    """
    if schedule.get("use_dynamic_shifting"):
        return 1.0
    # DPMSolverMultistepScheduler, which Sana's pipeline has, calls it flow_shift.
    return float(schedule.get("shift", schedule.get("flow_shift", 1.0)))


def alphas_cumprod(schedule: dict[str, Any]) -> Tensor:
    """Return ᾱ_t of a schedule, [num_train_timesteps] float32 on the CPU (Ho et al. 2020, eq. 4).

    Raises:
        ModelError: these settings make no schedule, or one that is not in 0 … 1.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    settings = {name: schedule[name] for name in SCHEDULE_FIELDS if name in schedule}
    try:
        alphas = DDPMScheduler.from_config(settings).alphas_cumprod
    except Exception as error:  # of a dozen kinds, where a setting has another type
        raise ModelError(
            f"the scheduler's config does not make a noise schedule ({first_line(error)})"
        ) from error
    timesteps = schedule["num_train_timesteps"]
    if alphas.shape != (timesteps,):
        raise ModelError(
            f"the scheduler's config has {timesteps} timesteps and {alphas.numel()} trained_betas"
        )
    if not ((alphas >= 0) & (alphas <= 1)).all():  # NaN is neither
        raise ModelError("the scheduler's betas leave a share of the picture outside of 0 … 1")
    return alphas


def _require_betas(schedule: dict[str, Any], file: Path) -> None:
    """Raise ModelError unless a schedule has betas, and a prediction that is known."""
    try:
        alphas_cumprod(schedule)
    except ModelError as error:
        raise ModelError(f"{file}: {error}; give the scheduler of the training") from error
    if schedule["prediction_type"] not in PREDICTION_TYPES:
        raise ModelError(
            f"{file}: prediction_type {quoted(schedule['prediction_type'])}: known are"
            f" {', '.join(PREDICTION_TYPES)}"
        )


def _require_shift(schedule: dict[str, Any], file: Path) -> None:
    """Raise ModelError unless the shift of a flow matching schedule is a number above 0."""
    for name in ("shift", "flow_shift"):
        value = schedule.get(name, 1.0)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value < MOST_TIMESTEPS:
            raise ModelError(f"{file}: {name} = {shortened(value)}: allowed is a number above 0")


def _scheduler_files(folder: Path) -> list[Path]:
    """Where in a folder a scheduler's file may lie."""
    return [folder / SCHEDULER_FILE, folder / "scheduler" / SCHEDULER_FILE]
