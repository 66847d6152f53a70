"""Copies of training pictures, changed in several ways, and how many of them are found."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from picture_sets import to_bytes
from PIL import Image, ImageOps

SMALLER, KEPT = 0.75, 0.9  # of a side


def resized(picture: Image.Image) -> Image.Image:
    """Return a picture with three quarters of its sides."""
    width, height = (round(SMALLER * side) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def cut(picture: Image.Image) -> Image.Image:
    """Return the middle of a picture, nine tenths of its sides in whole pixels."""
    width, height = (round(KEPT * side) for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def recompressed(picture: Image.Image, quality: int) -> Image.Image:
    """Return a picture as it is after being a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "exact": lambda picture: picture,
    "resized to 75%": resized,
    "JPEG 75": lambda picture: recompressed(picture, 75),
    "JPEG 30": lambda picture: recompressed(picture, 30),
    "flipped": ImageOps.mirror,
    "cut to 90%": cut,
}


def changed(name: str, picture: np.ndarray) -> np.ndarray:
    """Return a changed copy of a picture [channels, height, width] in [−1, 1], at its size."""
    image = Image.fromarray(to_bytes(picture).transpose(1, 2, 0).squeeze())
    copy = CHANGES[name](image).resize(image.size, Image.Resampling.BICUBIC)
    levels = np.asarray(copy, np.float32).reshape(image.height, image.width, -1)
    return levels.transpose(2, 0, 1) / 127.5 - 1


@dataclass(frozen=True)
class Planted:
    """A folder of pictures with copies among them.

    Attributes:
        folder: it.
        origins: {id of a copy: id of the picture that it is of}.
        changes: {id of a copy: its change}.
    """

    folder: Path
    origins: Mapping[str, str]
    changes: Mapping[str, str]


def plant(folder: Path, pictures: Mapping[str, Image.Image], copies: int, seed: int) -> Planted:
    """Write pictures and copies of some as PNG files into a folder, unless they are there.

    Args:
        pictures: {id, as the name of a file: picture}.
        copies: of each change; no picture has two copies.
        seed: of which pictures are copied.
    """
    names = list(pictures)
    chosen = np.random.default_rng(seed).choice(len(names), copies * len(CHANGES), replace=False)
    origins, changes = {}, {}
    for number, row in enumerate(chosen.tolist()):
        name = f"copy-{number:04d}.png"
        origins[name] = names[row]
        changes[name] = list(CHANGES)[number % len(CHANGES)]
    if not folder.exists():
        draft = folder.with_name(f"{folder.name}-draft")
        draft.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            picture.save(draft / name)
        for name, origin in origins.items():
            CHANGES[changes[name]](pictures[origin]).save(draft / name)
        draft.rename(folder)
    return Planted(folder, origins, changes)


def judged(
    clusters: Sequence[Sequence[str]], planted: Planted, natural: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Return how many copies are found with their originals, and what else is named.

    A copy is found where it is in one cluster with its original. Two pictures of which neither is
    a copy of the other, or of what the other is a copy of, are *others*, counted once for two
    originals. They are *natural* where they are in one cluster without any copies, too, and *wrong*
    where they are not.

    Args:
        clusters: ids of pictures, with the copies. natural: without them.

    Returns:
        {"found": {change: copies}, "planted": {change: copies}, "natural": pairs, "wrong": pairs}.
    """
    cluster_of = {name: number for number, cluster in enumerate(clusters) for name in cluster}
    found, planted_of = dict.fromkeys(CHANGES, 0), dict.fromkeys(CHANGES, 0)
    for name, origin in planted.origins.items():
        planted_of[planted.changes[name]] += 1
        if name in cluster_of and cluster_of[name] == cluster_of.get(origin):
            found[planted.changes[name]] += 1
    others = pairs_of([planted.origins.get(name, name) for name in cluster] for cluster in clusters)
    known = pairs_of(natural)
    return {
        "found": found,
        "planted": planted_of,
        "natural": len(others & known),
        "wrong": len(others - known),
    }


def pairs_of(clusters: Any) -> set[tuple[str, str]]:
    """Return the pairs of different pictures that are in one cluster, each in the order of names.

    >>> sorted(pairs_of([["b", "a", "b", "c"]]))
    [('a', 'b'), ('a', 'c'), ('b', 'c')]
    """
    return {pair for cluster in clusters for pair in combinations(sorted(set(cluster)), 2)}


def precision(judgement: Mapping[str, Any], natural: int = 0) -> float:
    """Return the share of copies found among these and the wrong pairs.

    Args:
        natural: pairs that count as wrong ones, too.
    """
    found = sum(judgement["found"].values())
    return found / max(1, found + judgement["wrong"] + natural)
