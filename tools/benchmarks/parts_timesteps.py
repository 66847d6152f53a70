"""Sets of timesteps that `tools/bench parts` measures, and rules that give them by log-SNR.

A rule says which logarithms of the ratio of signal to noise are taken, so that it carries to other
schedules, resolutions and flow matching; here the nearest timesteps of those measured stand for
them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import NormalDist

import numpy as np
from diffusers import DDPMScheduler

from gradindex.models.processes import CENTRE, WIDTH
from gradindex.recipe import grid

COUNTS = (1, 2, 3, 5, 10)  # of timesteps in a set
SINGLE = (10, 25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 650, 800, 950)
TIMESTEPS = tuple(sorted({*SINGLE, *(t for count in COUNTS for t in grid(count, 1000))}))

USUAL_SET = "weighted 5"  # nearest to those of a build unless told otherwise
TODAY = "even 10"  # timesteps of a build unless told otherwise, before these figures
FIRST_LOOK = {"first look 3": (75, 200, 500), "first look 5": (25, 75, 150, 300, 500)}
EVEN, EVEN_LOG_SNR, WEIGHTED = "even", "even in log-SNR", "weighted"
RANGE = (3.0, -2.5)  # log-SNR where a first look found the timesteps that are worth most

HIGHEST, LOWEST = (2, 3, 4, 5), (-1, -2.5, -4, -6)  # candidates for a range
CENTRES, WIDTHS = (-1, 0, 0.5, 1, 2), (1, 1.5, 2, 3)  # candidates for a weighted grid

DRAWS = (1, 2)  # of the noise at a timestep: a row is their mean, as `build --draws` has it
MORE_DRAWS = ("weighted 2", "weighted 5")  # sets that are measured with more draws than one

Rule = Callable[[int], tuple[int, ...]]  # number of timesteps → timesteps


def log_snr() -> np.ndarray:
    """Return the logarithm of each of TIMESTEPS' ratio of signal to noise."""
    alphas = DDPMScheduler().alphas_cumprod.double().numpy()[list(TIMESTEPS)]
    return np.log(alphas / (1 - alphas))


def even(count: int) -> tuple[int, ...]:
    """Return the middles of equal parts of all timesteps."""
    return grid(count, 1000)


def even_in_log_snr(high: float, low: float, count: int) -> tuple[int, ...]:
    """Return the timesteps at the middles of equal parts of a range of log-SNR."""
    return _nearest([high + (low - high) * share for share in _middles(count)])


def weighted(centre: float, width: float, count: int) -> tuple[int, ...]:
    """Return the timesteps that stand for equal parts of a normal distribution of log-SNR.

    For flow matching it is a logit-normal distribution of σ: log-SNR is 2 log((1 − σ)/σ).

    Args:
        centre, width: mean and standard deviation of the log-SNR.
    """
    distribution = NormalDist(centre, width)
    return _nearest([distribution.inv_cdf(1 - share) for share in _middles(count)])


def _middles(count: int) -> list[float]:
    return [(number + 0.5) / count for number in range(count)]


def _nearest(ratios: Sequence[float]) -> tuple[int, ...]:
    """The nearest of TIMESTEPS to some log-SNRs, none of them twice."""
    left = dict(zip(TIMESTEPS, log_snr(), strict=True))
    chosen = []
    for ratio in ratios:
        timestep = min(left, key=lambda t: abs(left[t] - ratio))
        del left[timestep]
        chosen.append(timestep)
    return tuple(sorted(chosen))


def timestep_sets() -> dict[str, tuple[int, ...]]:
    """Return the sets of timesteps that were fixed before, {name: timesteps}."""
    fixed: dict[str, Rule] = {
        EVEN: even,
        EVEN_LOG_SNR: partial(even_in_log_snr, *RANGE),
        WEIGHTED: partial(weighted, CENTRE, WIDTH),
    }
    sets = {f"{name} {count}": rule(count) for name, rule in fixed.items() for count in COUNTS}
    return sets | FIRST_LOOK


def draws_at(timestep: int) -> tuple[int, ...]:
    """Return the numbers of draws that are measured at a timestep."""
    sets = timestep_sets()
    return DRAWS if any(timestep in sets[name] for name in MORE_DRAWS) else DRAWS[:1]


def candidate_rules() -> dict[str, dict[str, Rule]]:
    """Return {family of rules: {name: rule}}."""
    ranges: dict[str, Rule] = {
        f"{high:+g} … {low:+g}": partial(even_in_log_snr, high, low)
        for high in HIGHEST
        for low in LOWEST
    }
    normals: dict[str, Rule] = {
        f"{centre:+g} ± {width:g}": partial(weighted, centre, width)
        for centre in CENTRES
        for width in WIDTHS
    }
    return {EVEN: {EVEN: even}, EVEN_LOG_SNR: ranges, WEIGHTED: normals}
