"""Emoji as a captioned data set: PNGs of 64×64, their names as captions, their categories."""

import gzip
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picture_sets import EMOJI_LIST, emoji_files, on_white
from PIL import Image
from transformers import CLIPTokenizer

OPEN_CLIP = "open-clip-torch==3.3.0"  # its wheel has the vocabulary of Stable Diffusion 1's CLIP
VOCABULARY = "open_clip/bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2  # of all its lines those that CLIP uses
TONES = {  # skin tones, as Unicode numbers them
    "1F3FB": "light skin",
    "1F3FC": "medium light skin",
    "1F3FD": "medium skin",
    "1F3FE": "medium dark skin",
    "1F3FF": "dark skin",
}


@dataclass(frozen=True)
class Emoji:
    """One emoji.

    Attributes:
        name: of its file, without suffix.
        caption: its name in small letters, with the skin tone where it has one.
        category: such as "Food & Drink". subcategory: such as "food-fruit".
        picture: on white, RGB.
    """

    name: str
    caption: str
    category: str
    subcategory: str
    picture: Image.Image


def read_emoji(work: Path) -> list[Emoji]:
    """Return all emoji that have a picture, in the order of their files' names."""
    files = emoji_files(work)
    entries: list[dict[str, Any]] = json.loads(files.pop(EMOJI_LIST))
    contents = {Path(name).stem: content for name, content in files.items()}
    emoji = []
    for entry in entries:
        variants = [(entry["image"], "")]
        for tones, variant in entry.get("skin_variations", {}).items():
            words = dict.fromkeys(TONES[tone] for tone in tones.split("-") if tone in TONES)
            variants.append((variant["image"], ", " + " and ".join(words)))
        for image, tone in variants:
            name = Path(image).stem
            if name in contents:
                caption = entry["name"].lower() + tone
                picture = on_white(contents[name])
                emoji.append(Emoji(name, caption, entry["category"], entry["subcategory"], picture))
    return sorted(emoji, key=lambda item: item.name)


def write_captioned(folder: Path, emoji: list[Emoji]) -> None:
    """Write pictures and their captions, x.png and x.txt, into a new folder."""
    folder.mkdir(parents=True)
    for item in emoji:
        item.picture.save(folder / f"{item.name}.png")
        (folder / f"{item.name}.txt").write_text(item.caption, encoding="utf-8")


def clip_tokenizer(work: Path) -> CLIPTokenizer:
    """Return the tokenizer of Stable Diffusion 1's CLIP, 49,408 entries, from open-clip's wheel."""
    folder = work / "tokenizer"
    if not (folder / "merges.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", OPEN_CLIP]
        subprocess.run([*command, "--dest", str(folder)], check=True)
        wheel = zipfile.ZipFile(next(folder.glob("open_clip_torch-*.whl")))
        lines = gzip.decompress(wheel.read(VOCABULARY)).decode().split("\n")
        merges = lines[1 : MERGES + 1]
        (folder / "vocab.json").write_text(json.dumps(_vocabulary(merges)), encoding="utf-8")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    files = [str(folder / name) for name in ("vocab.json", "merges.txt")]
    return CLIPTokenizer(*files, model_max_length=77)


def _vocabulary(merges: list[str]) -> dict[str, int]:
    """CLIP's tokens and their numbers: bytes, bytes at the end of a word, merges, two marks."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}
