"""What of a picture was asked about, where it was not simply all of it: answers say so."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# How the options are told after a picture's name.
WORDS = {
    "region": "region",
    "mask": "mask",
    "against": "against",
    "against_prompt": "against the prompt",
    "timesteps": "timesteps",
    "pairing": "pairing",
    "damping": "damping",
}


def asked_of(count: int, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what was asked of each of some pictures, as JSON values; empty of a whole picture.

    Args:
        options: of `WORDS`, those that were given, checked before; None: not given. Of `against`
            a list, one for each picture.

    >>> asked_of(2, {"region": (0, 0, 4, 4), "against": ["a.png", "b.png"], "pairing": None})[1]
    {'region': [0, 0, 4, 4], 'against': 'b.png'}
    """
    asked: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in options.items():
        if value is None:
            continue
        for number, fields in enumerate(asked):
            fields[name] = _value(name, value, number)
    return asked


def _value(name: str, value: Any, number: int) -> Any:
    """An option's value for one picture, as a JSON value."""
    if name == "region":
        return [int(side) for side in value]
    if name == "against" or (name == "against_prompt" and not isinstance(value, str)):
        value = value[number]
    if name in ("mask", "against"):
        return str(value) if isinstance(value, str | Path) else "a picture"
    return str(value) if name == "against_prompt" else value


def asked_text(asked: Mapping[str, Any]) -> str:
    """Return what was asked of a picture, to be told after its name.

    >>> asked_text({"region": [0, 0, 4, 4], "against_prompt": "a cat"}), asked_text({})
    (", region 0,0,4,4, against the prompt 'a cat'", '')
    """
    texts = [f"{WORDS[name]} {_text(name, value)}" for name, value in asked.items()]
    return "".join(f", {text}" for text in texts)


def _text(name: str, value: Any) -> str:
    if name == "region":
        return ",".join(map(str, value))
    return repr(value) if name == "against_prompt" else str(value)
