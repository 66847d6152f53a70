"""A small drawing of what each timestep adds to a score, by the timestep's place in training."""

from collections.abc import Mapping

WIDTH, HEIGHT = 200, 40  # of the drawing, in its own units
SIDE = 30  # of the height, for parts of the score's own sign; the rest is for others
MOST_BARS = 40  # more timesteps are added up in so many equal ranges


def chart_path(by_timestep: Mapping[float, float], last: float, full: float) -> str:
    """Return the drawing as the path of an SVG: a vertical stroke for each timestep.

    Args:
        by_timestep: {timestep: what it adds}.
        last: S; timestep 0 is at the left, S at the right.
        full: what has full height; more is cut.

    >>> chart_path({250: 0.5, 750: 1.0}, last=1000, full=1.0)
    'M50 30v-15M150 30v-30'
    """
    zero = zero_line(by_timestep)
    parts = _binned(by_timestep, last) if len(by_timestep) > MOST_BARS else by_timestep
    strokes = []
    for t, part in parts.items():
        height = round(SIDE * part / full) if full > 0 else 0
        if height:
            end = max(0, min(HEIGHT, zero - height))
            strokes.append(f"M{round(t / last * WIDTH)} {zero}v{end - zero}")
    return "".join(strokes)


def zero_line(by_timestep: Mapping[float, float]) -> int:
    """Return how far from the top zero is: low where the parts add up to more than it."""
    return SIDE if sum(by_timestep.values()) >= 0 else HEIGHT - SIDE


def stroke_width(timesteps: int) -> float:
    """Return how wide a stroke is where there are so many timesteps, in units of the drawing."""
    return round(min(16.0, 0.7 * WIDTH / max(1, min(timesteps, MOST_BARS))), 1)


def parts_text(by_timestep: Mapping[float, float]) -> str:
    """Return what each timestep adds, in few letters; empty where there are too many of them.

    >>> parts_text({50.0: 2.934, 150.0: -0.5})
    'by timestep 50: 2.93, 150: -0.5'
    """
    if len(by_timestep) > MOST_BARS:
        return "by timestep"
    texts = [f"{t:.5g}: {part:.3g}" for t, part in by_timestep.items()]
    return f"by timestep {', '.join(texts)}"


def _binned(by_timestep: Mapping[float, float], last: float) -> dict[float, float]:
    """What ranges of timesteps add, each at its middle."""
    width = last / MOST_BARS
    sums: dict[float, float] = {}
    for t, part in by_timestep.items():
        middle = (min(int(t / width), MOST_BARS - 1) + 0.5) * width
        sums[middle] = sums.get(middle, 0.0) + part
    return sums
