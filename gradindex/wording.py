"""Numbers in words: counts with their nouns, bytes, durations."""

SIZE_UNITS = ("bytes", "KiB", "MiB", "GiB")
SECONDS = {"days": 86400, "hours": 3600, "minutes": 60}
FEWEST = 1.9  # of a unit, below which a duration is told in the next smaller one


def counted(count: int, one: str, several: str | None = None) -> str:
    """Return a number and what is counted, in the singular for 1.

    Args:
        several: the plural; by default `one` with an s.

    >>> counted(1, "picture"), counted(1200, "picture"), counted(2, "query", "queries")
    ('1 picture', '1,200 pictures', '2 queries')
    """
    noun = one if count == 1 else several or f"{one}s"
    return f"{count:,} {noun}"


def share(count: int, total: int, noun: str, one: str, several: str) -> str:
    """Return how many of how many, and the verb that goes with it.

    >>> share(1, 6, "picture", "has", "have"), share(2, 6, "picture", "has", "have")
    ('1 of 6 pictures has', '2 of 6 pictures have')
    """
    return f"{count:,} of {counted(total, noun)} {one if count == 1 else several}"


def size_text(count: float) -> str:
    """Return bytes in the unit that leaves one to three digits before the point.

    >>> size_text(1536), size_text(7 << 40)
    ('1.5 KiB', '7.0 TiB')
    """
    for unit in SIZE_UNITS:
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def duration_text(seconds: float) -> str:
    """Return an estimate of time as a person would say it, of two digits at the most.

    >>> [duration_text(seconds) for seconds in (0.4, 8.3, 61, 66.4)]
    ['less than a second', 'about 8 seconds', 'about a minute', 'about 70 seconds']
    >>> [duration_text(seconds) for seconds in (140, 9000, 123456789)]
    ['about 2.3 minutes', 'about 2.5 hours', 'about 1,400 days']
    """
    for unit, length in SECONDS.items():
        if seconds >= FEWEST * length:
            count = float(f"{seconds / length:.2g}")
            return f"about {count:,.0f} {unit}" if count >= 10 else f"about {count:g} {unit}"
    if seconds < 1:
        return "less than a second"
    count = round(seconds) if seconds < 20 else round(seconds, -1)
    if count == 60:
        return "about a minute"
    return f"about {counted(round(count), 'second')}"


def timestep_text(timestep: float) -> str:
    """Return a timestep with as few digits as tell it from all others of float32.

    >>> timestep_text(500), timestep_text(500.0), timestep_text(999.6699829101562)
    ('500', '500', '999.67')
    """
    from numpy import float32

    return str(int(timestep)) if float(timestep).is_integer() else str(float32(timestep))


def fewest_digits(number: float) -> str:
    """Return a number with as few digits as tell it from all others.

    >>> fewest_digits(5.0), fewest_digits(0.05), fewest_digits(float("inf"))
    ('5', '0.05', 'inf')
    """
    return str(int(number)) if float(number).is_integer() else repr(float(number))
