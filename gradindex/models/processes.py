"""How noise and pictures are mixed at a timestep, and what a model is trained to predict of them.

A process is made of the configuration of a diffusers scheduler, see `schedules`. S is its number of
training timesteps.
"""

import json
from collections.abc import Sequence
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
from gradindex.recipe import FLOW, grid, to_numbers


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

    def grid(self, timesteps: int | Sequence[float]) -> tuple[float, ...]:
        """Return the timesteps of a grid: how many, evenly spread over training, or which."""

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

    def grid(self, timesteps: int | Sequence[float]) -> tuple[float, ...]:
        """Return the timesteps of a grid; see `recipe.grid`."""
        return grid(timesteps, self.num_train_timesteps)

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

    def grid(self, timesteps: int | Sequence[float]) -> tuple[float, ...]:
        """Return timesteps: the shifted midpoints of n equal parts of training, or those given.

        `u_j = (j + ½) / n`, `σ_j = s u_j / (1 + (s − 1) u_j)` with the scheduler's shift s, and
        `t_j = S σ_j`, rounded to float32.

        Raises:
            CallError: n is not in 1 … S; a timestep is not above 0 and up to S, or is there twice.
        """
        last = self.num_train_timesteps
        if isinstance(timesteps, int):
            if not 1 <= timesteps <= last:
                raise CallError(
                    f"timesteps = {timesteps}: give 1 to {last}, as many as the scheduler has"
                )
            u = (np.arange(timesteps) + 0.5) / timesteps
            chosen = last * self._shift * u / (1 + (self._shift - 1) * u)
        else:
            chosen = np.sort(np.array(to_numbers(timesteps), np.float64))
        rounded = tuple(float(t) for t in chosen.astype(np.float32))
        is_inside = all(0 < t <= last for t in rounded)
        if not rounded or not is_inside or len(set(rounded)) < len(rounded):
            given = timesteps if isinstance(timesteps, int) else list(timesteps)
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
