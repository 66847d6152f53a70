"""How noise and pictures are mixed at a timestep, and what a model is trained to predict of them.

A process is made of the configuration of a diffusers scheduler, see `schedules`. S is its number of
training timesteps.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gradindex.errors import CallError, ModelError
from gradindex.models.schedules import (
    PREDICTION_TYPES,
    SCHEDULE_FIELDS,
    alphas_cumprod,
    flow_shift,
    is_flow,
)
from gradindex.recipe import FLOW, grid, require_count, to_numbers

CENTRE, WIDTH = 0.5, 2.0  # of the log-SNRs of `Weighted` timesteps: mean, standard deviation


@dataclass(frozen=True)
class Weighted:
    """A number of timesteps, closer together where a gradient tells more of a picture.

    Each stands for an equal part of a normal distribution of log-SNR, the logarithm of the ratio of
    signal to noise: the same noise on pictures whatever the schedule. For flow matching that is a
    logit-normal distribution of σ (Esser et al. 2024, eq. 19).

    Attributes:
        count: how many.
    """

    count: int

    def log_snr(self) -> np.ndarray:
        """Return the log-SNR of each, the highest first, [count] float64.

        >>> Weighted(1).log_snr()
        array([0.5])
        """
        distribution = NormalDist(CENTRE, WIDTH)
        shares = (np.arange(self.count) + 0.5) / self.count
        return np.array([distribution.inv_cdf(1 - share) for share in shares.tolist()])


Timesteps = int | Weighted | Sequence[float]  # how many, evenly spread or weighted; or which


class Process(Protocol):
    """What a denoiser needs of the noise process that its model was trained with.

    Attributes:
        num_train_timesteps: S.
        prediction_type: what the model predicts: "epsilon", "v_prediction", "sample" or "flow".
        fields: canonical JSON of the settings that decide it, for a `Recipe`.
    """

    num_train_timesteps: int
    prediction_type: str
    fields: str

    def grid(self, timesteps: Timesteps) -> tuple[float, ...]:
        """Return the timesteps of a grid, sorted."""

    def noisy(self, x: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """Return x [B, …] with noise ε [B, …] of timesteps t [B] mixed in, [B, …]."""

    def target(self, x: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """Return what the model was trained to predict, [B, …]."""


class Ddpm:
    """Denoising diffusion with whole timesteps 0 … S − 1 (Ho et al. 2020).

    Args:
        schedule: of a scheduler with betas.
        device: where the tensors of `noisy` and `target` are.

    Raises:
        ModelError: the prediction type is not known, or the settings make no schedule.
    """

    def __init__(self, schedule: dict[str, Any], device: str | torch.device) -> None:
        self.prediction_type: str = schedule["prediction_type"]
        if self.prediction_type not in PREDICTION_TYPES:
            raise ModelError(
                f"prediction_type {self.prediction_type!r}: known are {', '.join(PREDICTION_TYPES)}"
            )
        self.num_train_timesteps: int = schedule["num_train_timesteps"]
        self.fields = json.dumps(
            {name: schedule.get(name) for name in SCHEDULE_FIELDS}, sort_keys=True
        )
        alphas = alphas_cumprod(schedule).to(device)
        self._alphas = alphas.double().cpu().numpy()
        self._signal_scale = alphas.sqrt()
        self._noise_scale = (1 - alphas).sqrt()

    def grid(self, timesteps: Timesteps) -> tuple[float, ...]:
        """Return the timesteps of a grid; see `recipe.grid`. Weighted ones are the nearest.

        Raises:
            CallError: there are more than S, or they are not distinct ones of 0 … S − 1.
        """
        if isinstance(timesteps, Weighted):
            require_count(timesteps.count, self.num_train_timesteps)
            return self._nearest(timesteps.log_snr())
        return grid(timesteps, self.num_train_timesteps)

    def _nearest(self, ratios: np.ndarray) -> tuple[int, ...]:
        """The timesteps nearest to some log-SNRs, none of them twice, sorted."""
        left = np.arange(self.num_train_timesteps)
        with np.errstate(divide="ignore"):  # a last timestep without any signal
            curve = np.log(self.snr(left))
        chosen = []
        for ratio in ratios:
            position = int(np.argmin(np.abs(curve[left] - ratio)))
            chosen.append(int(left[position]))
            left = np.delete(left, position)
        return tuple(sorted(chosen))

    def noisy(self, x: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """Return `√ᾱ_t x + √(1 − ᾱ_t) ε` (Ho et al. 2020, eq. 4)."""
        return self._scaled(self._signal_scale, t, x) + self._scaled(self._noise_scale, t, epsilon)

    def target(self, x: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """Return ε, x, or v (Salimans and Ho 2022, "Progressive distillation")."""
        if self.prediction_type == "epsilon":
            return epsilon
        if self.prediction_type == "sample":
            return x
        return self._scaled(self._signal_scale, t, epsilon) - self._scaled(self._noise_scale, t, x)

    def snr(self, t: np.ndarray) -> np.ndarray:
        """Return the signal-to-noise ratio ᾱ / (1 − ᾱ) at timesteps, float64."""
        alphas = self._alphas[t]
        return alphas / (1 - alphas)

    def _scaled(self, scales: Tensor, t: Tensor, values: Tensor) -> Tensor:
        return scales[t].view(-1, *[1] * (values.dim() - 1)) * values


class Flow:
    """Flow matching: a straight line from picture to noise (Lipman et al. 2023; Liu et al. 2023).

    Timesteps are t = S·σ, numbers of float32 above 0 and up to S, with `x_t = (1 − σ) x + σ ε`. A
    scheduler may shift them towards noise (Esser et al. 2024, eq. 23).

    Args:
        schedule: of a flow matching scheduler.

    >>> flow = Flow({"num_train_timesteps": 1000, "shift": 3.0})
    >>> flow.grid(2)
    (500.0, 900.0)
    >>> flow.noisy(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([250.0]))
    tensor([[0.2500, 0.2500]])
    """

    prediction_type = FLOW

    def __init__(self, schedule: dict[str, Any]) -> None:
        self.num_train_timesteps: int = schedule["num_train_timesteps"]
        self._shift = flow_shift(schedule)
        self.fields = json.dumps(
            {"num_train_timesteps": self.num_train_timesteps, "shift": self._shift}, sort_keys=True
        )

    def grid(self, timesteps: Timesteps) -> tuple[float, ...]:
        """Return timesteps: the shifted midpoints of n equal parts of training, or those given.

        `u_j = (j + ½) / n`, `σ_j = s u_j / (1 + (s − 1) u_j)` with the scheduler's shift s, and
        `t_j = S σ_j`, rounded to float32. Weighted ones have their log-SNR, `2 log((1 − σ) / σ)`.

        Raises:
            CallError: n is not in 1 … S; a timestep is not above 0 and up to S, or is there twice.
        """
        last = self.num_train_timesteps
        if isinstance(timesteps, Weighted):
            require_count(timesteps.count, last)
            chosen = np.sort(last / (1 + np.exp(timesteps.log_snr() / 2)))
        elif isinstance(timesteps, int):
            require_count(timesteps, last)
            u = (np.arange(timesteps) + 0.5) / timesteps
            chosen = last * self._shift * u / (1 + (self._shift - 1) * u)
        else:
            chosen = np.sort(np.array(to_numbers(timesteps), np.float64))
        rounded = tuple(float(t) for t in chosen.astype(np.float32))
        is_inside = all(0 < t <= last for t in rounded)
        if not rounded or not is_inside or len(set(rounded)) < len(rounded):
            given = timesteps if isinstance(timesteps, int | Weighted) else list(timesteps)
            raise CallError(
                f"timesteps = {given}: give distinct timesteps above 0, up to {last} (flow"
                " matching)"
            )
        return rounded

    def noisy(self, x: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """Return `(1 − σ) x + σ ε`."""
        sigma = (t / self.num_train_timesteps).view(-1, *[1] * (x.dim() - 1))
        return (1 - sigma) * x + sigma * epsilon

    def target(self, x: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """Return the velocity of the line, ε − x."""
        return epsilon - x


def make_process(schedule: dict[str, Any], device: str | torch.device) -> Process:
    """Return the process of a schedule.

    Raises:
        ModelError: see `Ddpm`.
    """
    return Flow(schedule) if is_flow(schedule) else Ddpm(schedule, device)
