"""Hostile inputs: what a valid file becomes, byte by byte or by the grammar of JSON and CSV.

Every function draws from a `random.Random`, so that hypothesis can shrink what it draws, and
`tools/bench chaos` can draw many inputs from a seed.
"""

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

INTERESTING_BYTES = (0x00, 0x01, 0x0A, 0x22, 0x2C, 0x7F, 0x80, 0xC0, 0xFE, 0xFF)
INTEGERS = (
    *(0, 1, -1, 2, 255, 256, 65535, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**32, 10**12),
    *(2**53 + 1, 2**62, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, 10**30, -(10**30)),
)
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-320, 1e300, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    *("", "0", "nan", "null", "a" * 5000, "..", "../../etc/passwd", "/dev/zero", "/", "."),
    *("\x00", "a\x00b", "a\nb", "\ud800", "é\u2028", "s3://", "[v2]", "*", "%s%n", "float99"),
)
DEEP = 3000  # nested lists: more than Python's recursion limit
WORD_BYTES = (1, 2, 4, 8)


# --- bytes -------------------------------------------------------------------------------------


def flip_bits(data: bytes, random: Random) -> bytes:
    """Return bytes of which one to eight bits are flipped."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 8)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(data: bytes, random: Random) -> bytes:
    """Return the bytes before a random place."""
    return data[: random.randrange(len(data))]


def cut_out(data: bytes, random: Random) -> bytes:
    """Return bytes without a piece in their middle."""
    start, stop = sorted(random.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[stop:]


def splice(data: bytes, random: Random) -> bytes:
    """Return bytes with a piece of themselves over, or between, what is elsewhere."""
    start, stop = sorted(random.randrange(len(data) + 1) for _ in range(2))
    piece = data[start : min(stop, start + 256)]
    place = random.randrange(len(data) + 1)
    rest = place + random.choice((0, len(piece)))
    return data[:place] + piece + data[rest:]


def overwrite(data: bytes, random: Random) -> bytes:
    """Return bytes with a few of them replaced by ones that decoders stumble over."""
    changed = bytearray(data)
    start = random.randrange(len(changed))
    for place in range(start, min(len(changed), start + random.randint(1, 16))):
        changed[place] = random.choice(INTERESTING_BYTES)
    return bytes(changed)


def huge_number(data: bytes, random: Random) -> bytes:
    """Return bytes with a number over some of them, of any width and byte order.

    It lies near the start half of the time: headers declare sizes there.
    """
    width = random.choice(WORD_BYTES)
    number = random.choice(INTEGERS) % 2 ** (8 * width)
    word = number.to_bytes(width, random.choice(("little", "big")))
    last = max(1, len(data) - width + 1)
    place = random.randrange(min(last, 64) if random.random() < 0.5 else last)
    return data[:place] + word + data[place + width :]


def append(data: bytes, random: Random) -> bytes:
    """Return bytes with others after them."""
    return data + bytes(random.randrange(256) for _ in range(random.randint(1, 64)))


def replace_all(data: bytes, random: Random) -> bytes:
    """Return random bytes, or none at all, in place of what was there."""
    return bytes(random.randrange(256) for _ in range(random.choice((0, 1, 7, 64, 300))))


BYTE_MUTATIONS: tuple[Callable[[bytes, Random], bytes], ...] = (
    flip_bits,
    cut,
    cut_out,
    splice,
    overwrite,
    huge_number,
    append,
    replace_all,
)


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Return bytes that are changed in one to three ways."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        mutation = random.choice(BYTE_MUTATIONS if data else (append,))
        data = mutation(data, random)
    return data


# --- JSON --------------------------------------------------------------------------------------


def strange_value(random: Random) -> Any:
    """Return a JSON value of any type, often at the edge of what its type can hold."""
    kind = random.randrange(8)
    if kind < 3:
        return random.choice(INTEGERS)
    if kind == 3:
        return random.choice(FLOATS)
    if kind == 4:
        return random.choice(TEXTS)
    if kind == 5:
        return random.choice((None, True, False))
    if kind == 6:
        return random.choice(([], {}, [[]], [0] * 1000, {"": 0}, [None], {"a": {"b": []}}))
    return nested(random.choice((2, 50, 100)))


def nested(depth: int) -> Any:
    """Return lists in lists, so many."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) in a JSON value."""
    found = []
    waiting = [value] if isinstance(value, (dict, list)) else []
    while waiting:
        container = waiting.pop()
        keys = container if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], (dict, list)):
                waiting.append(container[key])
    return found


def mutate_json(value: Any, random: Random) -> Any:
    """Return a JSON object or list of which one to three values or names are others."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        found = places(value)
        if not found:
            return strange_value(random)
        container, key = random.choice(found)
        action = random.randrange(8)
        if action < 4:
            container[key] = strange_value(random)
        elif action == 4:
            container[key] = _near(container[key], random)
        elif action == 5:
            del container[key]
        elif action == 6 and isinstance(container, dict):
            container[random.choice(TEXTS)] = container[key]
        else:
            other, other_key = random.choice(found)
            container[key] = copy.deepcopy(other[other_key])
    return value


def _near(value: Any, random: Random) -> Any:
    """Return a value of the same type, or of one that is easily taken for it."""
    if isinstance(value, bool):
        return random.choice((not value, int(value), str(value)))
    if isinstance(value, int):
        return random.choice((value + 1, value - 1, -value, float(value), str(value), bool(value)))
    if isinstance(value, float):
        return random.choice(
            (-value, value * 1e30, str(value), round(value) if abs(value) < 1e9 else 0)
        )
    if isinstance(value, str):
        return random.choice((value.upper(), value[:-1], value + " ", [value], value * 2))
    if isinstance(value, list):
        return random.choice(
            (value[:-1], value * 2, value[::-1], {str(i): item for i, item in enumerate(value)})
        )
    if isinstance(value, dict):
        return random.choice((list(value), list(value.items()), {**value, "": value}))
    return 0


def spell_json(value: Any, random: Random) -> bytes:
    """Return a JSON text of a value: as Python writes it, or in a way that readers stumble over."""
    text = json.dumps(value, indent=random.choice((None, 1)))
    kind = random.randrange(12)
    if kind == 0 and text.startswith("{") and text != "{}":
        first = next(iter(value))
        repeated = json.dumps({first: strange_value(random)})
        text = repeated[:-1] + "," + text[1:]  # one name twice
    elif kind == 1:
        return b"\xef\xbb\xbf" + text.encode()
    elif kind == 2:
        return text.encode("utf-16")
    elif kind == 3:
        return text.encode().replace(b'"', b'"\xff', 1)  # not UTF-8
    elif kind == 4:
        text = text[:-1] + ',"deep":' + "[" * DEEP + "]" * DEEP + text[-1:]
    elif kind == 5:
        text = text.replace("0", "1" + "0" * 5000, 1)  # more digits than Python reads
    elif kind == 6:
        text = text.replace("0", "1e999", 1)
    return text.encode()


# --- CSV ---------------------------------------------------------------------------------------

CELLS = (
    *("", "0", "-1", "1.5", "1e30", "1e999", "nan", "inf", "NA", "null", "true", "0x10", "1_0"),
    *("9" * 30, str(2**63), str(2**64), " 1", "1 ", "'1'", "a,b", 'a"b', "a\nb", "é", "=1+1"),
    *("2024-01-01", "../a.png", "/etc/passwd", "a\\b.png", "a" * 5000, "https://a/b.png"),
)


def mutate_csv(rows: list[list[str]], random: Random) -> bytes:
    """Return the text of a table, rows of cells, of which one to three cells or rows are others."""
    rows = [list(row) for row in rows]
    for _ in range(random.choice((1, 1, 2, 3))):
        row = random.choice(rows)
        action = random.randrange(8)
        if action < 4 and row:
            row[random.randrange(len(row))] = random.choice(CELLS)
        elif action == 4 and row:
            del row[random.randrange(len(row))]
        elif action == 5:
            row.append(random.choice(CELLS))
        elif action == 6:
            rows.insert(random.randrange(len(rows) + 1), list(random.choice(rows)))
        elif len(rows) > 1:
            rows.remove(row)
    text = random.choice(("\n", "\n", "\r\n")).join(",".join(map(_quoted, row)) for row in rows)
    return random.choice((b"", b"", b"\xef\xbb\xbf")) + (text + "\n").encode()


def _quoted(cell: str) -> str:
    """Return a cell as CSV has it."""
    if any(letter in cell for letter in ',"\n\r'):
        return '"' + cell.replace('"', '""') + '"'
    return cell
