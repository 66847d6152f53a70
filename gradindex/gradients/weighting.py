"""The weight that a trainer gave its loss at each timestep: a gradient row is multiplied with it.

- min-snr:γ: min(SNR, γ) / SNR, where v is predicted / (SNR + 1), where x is min(SNR, γ). What
  diffusers' scripts and kohya's do.
- min-snr-plus-one:γ: min(SNR, γ) / SNR, where v is predicted + 1. diffusers' older scripts, and
  the one for DreamBooth LoRAs of SDXL.
- snr: SNR. diffusers' unconditional script, where x is predicted.
- debiased: 1 / √SNR, of an SNR of at most 1000. kohya's --debiased_estimation_loss.
- debiased-v: 1 / (SNR + 1), of an SNR of at most 1000. The same option where v is predicted, since
  2025.
- sigma-sqrt: σ⁻², and cosmap: 2 / (π (1 − 2σ + 2σ²)). diffusers' scripts for SD3, Flux and later.

SNR is ᾱ / (1 − ᾱ) (Hang et al. 2023, "Min-SNR", arXiv 2303.09556); σ is flow matching's (Esser et
al. 2024, arXiv 2403.03206, for the last two).
"""

import math
from collections.abc import Sequence

import numpy as np

from gradindex.errors import CallError
from gradindex.models.processes import Ddpm, Flow, Process
from gradindex.wording import fewest_digits

MIN_SNR, MIN_SNR_PLUS_ONE, SNR = "min-snr", "min-snr-plus-one", "snr"
DEBIASED, DEBIASED_V = "debiased", "debiased-v"
SIGMA_SQRT, COSMAP = "sigma-sqrt", "cosmap"
WITH_GAMMA = (MIN_SNR, MIN_SNR_PLUS_ONE)
OF_DDPM = (*WITH_GAMMA, SNR, DEBIASED, DEBIASED_V)
OF_FLOW = (SIGMA_SQRT, COSMAP)
LARGEST_SNR = 1000.0  # of both, as kohya's script has it


def timestep_weights(
    weighting: str | None, process: Process, timesteps: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Return the weight of the loss at n timesteps, [n] float64; ones where `weighting` is None.

    Raises:
        CallError: the weighting is not known, not one of this process, or infinite at a timestep.

    >>> flow = Flow({"num_train_timesteps": 1000})
    >>> timestep_weights("sigma-sqrt", flow, [500.0, 1000.0])
    array([4., 1.])
    """
    t = np.asarray(timesteps)
    if weighting is None:
        return np.ones(len(t))
    name, gamma = _parse(weighting)
    if name in OF_FLOW:
        if not isinstance(process, Flow):
            raise CallError(f"weighting = {weighting!r}: for models of flow matching")
        weights = _flow_weights(name, t / process.num_train_timesteps)
    else:
        if not isinstance(process, Ddpm):
            raise CallError(f"weighting = {weighting!r}: for models with a signal-to-noise ratio")
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = _ddpm_weights(name, gamma, process.snr(t), process.prediction_type)
    if not np.isfinite(weights).all():
        worst = t[~np.isfinite(weights)][0]
        raise CallError(f"weighting = {weighting!r}: infinite at timestep {worst}; leave it out")
    return weights


def one_spelling(weighting: str | None) -> str | None:
    """Return a weighting as a recipe has it, where γ is written with the fewest digits.

    Raises:
        CallError: the weighting is not known.

    >>> one_spelling("min-snr:5.0"), one_spelling("min-snr:0.50"), one_spelling("snr")
    ('min-snr:5', 'min-snr:0.5', 'snr')
    """
    if weighting is None:
        return None
    name, gamma = _parse(weighting)
    return f"{name}:{fewest_digits(gamma)}" if name in WITH_GAMMA else name


def _parse(weighting: str) -> tuple[str, float]:
    """The name of a weighting and its γ, infinite for one without.

    >>> _parse("min-snr:5")
    ('min-snr', 5.0)
    """
    name, colon, number = weighting.partition(":")
    try:
        gamma = float(number) if colon else math.inf
    except ValueError:
        gamma = math.nan
    takes_gamma = name in WITH_GAMMA
    if name not in OF_DDPM + OF_FLOW or takes_gamma != bool(colon) or not gamma > 0:
        allowed = [f"{known}:5" if known in WITH_GAMMA else known for known in OF_DDPM + OF_FLOW]
        raise CallError(f"weighting = {weighting!r}: allowed are {', '.join(allowed)}")
    return name, gamma


def _ddpm_weights(name: str, gamma: float, snr: np.ndarray, prediction_type: str) -> np.ndarray:
    if name == SNR:
        return snr
    if name == DEBIASED:
        return 1 / np.sqrt(np.minimum(snr, LARGEST_SNR))
    if name == DEBIASED_V:
        return 1 / (np.minimum(snr, LARGEST_SNR) + 1)
    smaller = np.minimum(snr, gamma)
    if prediction_type == "sample":
        return smaller
    if prediction_type == "v_prediction":
        return smaller / snr + 1 if name == MIN_SNR_PLUS_ONE else smaller / (snr + 1)
    return smaller / snr


def _flow_weights(name: str, sigma: np.ndarray) -> np.ndarray:
    if name == SIGMA_SQRT:
        return sigma**-2.0
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
