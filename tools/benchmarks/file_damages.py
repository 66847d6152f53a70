"""Damaged files of an index: each is named, never believed, and mended."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from command_processes import exit_status
from digit_indexes import SEED, Answers, Setting, are_alike, rank_alike
from index_files import differences, file_names

from gradindex.builder.verify import damages
from gradindex.errors import StoreError
from gradindex.search.scoring import METHODS

Random = np.random.Generator
COUNTS = ("damages", "true answers", "refusals")


def flip_bit(file: Path, random: Random) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[random.integers(len(content))] ^= 1 << random.integers(8)
    file.write_bytes(content)


def cut(file: Path, random: Random) -> None:
    """Cut off the end of a file."""
    content = file.read_bytes()
    file.write_bytes(content[: random.integers(1, len(content))])


def empty(file: Path, random: Random) -> None:
    """Leave a file of no bytes."""
    file.write_bytes(b"")


def delete(file: Path, random: Random) -> None:
    """Delete a file."""
    file.unlink()


FILE_DAMAGES: dict[str, Callable[[Path, Random], None]] = {
    "flip a bit": flip_bit,
    "cut": cut,
    "empty": empty,
    "delete": delete,
}
EXCHANGE, COPY_OVER = "exchange with a sibling", "copy a sibling over it"
DAMAGES = (*FILE_DAMAGES, COPY_OVER, EXCHANGE)


def damage_file(folder: Path, name: str, kind: str, random: Random) -> list[str]:
    """Damage a file of an index.

    Args:
        kind: one of DAMAGES.

    Returns:
        The names of the files that are no longer as they were.
    """
    file = folder / name
    if kind in FILE_DAMAGES:
        FILE_DAMAGES[kind](file, random)
        return [name]
    sibling_name = find_sibling(folder, name, random)
    sibling = folder / sibling_name
    content, sibling_content = file.read_bytes(), sibling.read_bytes()
    file.write_bytes(sibling_content)
    if kind == COPY_OVER:
        return [name]
    sibling.write_bytes(content)
    return sorted([name, sibling_name])


def find_sibling(folder: Path, name: str, random: Random) -> str:
    """Return a file of the same ending with other content.

    It is of the same top folder where there is one.
    """
    content = (folder / name).read_bytes()
    suffix = Path(name).suffix
    top_folder = name.partition("/")[0]
    siblings = []
    for other in file_names(folder):
        if Path(other).suffix == suffix and (folder / other).read_bytes() != content:
            siblings.append(other)
    near = [other for other in siblings if other.partition("/")[0] == top_folder]
    return str(random.choice(near or siblings))


def damage(setting: Setting, count: int) -> list[dict[str, Any]]:
    """Damage so many files, each of a fresh copy of the finished index, see `_make_whole`.

    Returns:
        A row for each kind of damage, which counts, and says what was wrong.
    """
    random = np.random.default_rng(SEED)
    folder = setting.folder / "place"
    counts = {kind: Counter(dict.fromkeys(COUNTS, 0)) for kind in DAMAGES}
    wrong: dict[str, list[str]] = {kind: [] for kind in DAMAGES}
    whole = _make_whole(setting)
    truth = setting.answers(whole)
    names = file_names(whole)
    remaining: list[str] = []
    for _ in range(count):
        # Every file in turn, in a random order, which is a new one each time.
        remaining = remaining or random.permutation(names).tolist()
        name = remaining.pop()
        kind = str(random.choice(DAMAGES))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        damaged = damage_file(folder, name, kind, random)
        counts[kind]["damages"] += 1
        lines = [
            *_check_verify(folder, damaged),
            *_check_answers(setting, folder, truth, counts[kind]),
            *_check_mended(setting, folder, whole),
        ]
        wrong[kind] += [f"{' and '.join(damaged)}: {line}" for line in lines]
    return [
        {"damage": kind, **counts[kind], "failures": len(wrong[kind]), "what": wrong[kind]}
        for kind in DAMAGES
    ]


def _make_whole(setting: Setting) -> Path:
    """The finished index with whitening factors that were made in one pass, as a mend makes them.

    Raises:
        RuntimeError: it does not answer as the finished index.
    """
    whole = setting.folder / "whole-anew"
    setting.make_factors_anew(setting.whole, whole)
    if not are_alike(setting.answers(whole), setting.truth[setting.whole]):
        raise RuntimeError(f"{whole}: factors that are made anew give other answers")
    return whole


def _check_verify(folder: Path, damaged: list[str]) -> list[str]:
    """What is wrong unless `verify` names the damaged files and nothing else."""
    named = sorted(line.split()[0] for line in damages(folder))
    return [] if named == damaged else [f"verify names {named}"]


def _check_answers(
    setting: Setting, folder: Path, truth: Answers, counts: Counter[str]
) -> list[str]:
    """What is wrong unless each method gives the true answers or refuses, which is counted."""
    wrong = []
    copy = setting.folder / "copy"
    for method in METHODS:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)  # a query may mend search files
        try:
            if rank_alike(setting.answer(copy, method), truth[method]):
                counts["true answers"] += 1
            else:
                wrong.append(f"another answer of {method}")
        except StoreError:
            counts["refusals"] += 1
    return wrong


def _check_mended(setting: Setting, folder: Path, whole: Path) -> list[str]:
    """What is wrong unless the same build with --check makes the index whole again."""
    wrong = []
    stderr = setting.folder / "stderr"
    if exit_status(setting.mend.words(folder), stderr):
        wrong.append(f"the build fails: {stderr.read_text()}")
    return [*wrong, *damages(folder), *differences(folder, whole)]
