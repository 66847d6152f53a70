"""Captions of a plain folder: text files beside the pictures, and names of kohya's folders.

`x.txt` or `x.caption` is the caption of `x.png`, as kohya's sd-scripts, ai-toolkit and others read
it. A picture without such a file that lies in a folder `10_sks dog` has the caption `sks dog`, as
sd-scripts' DreamBooth method has it; the 10 repeats do not count here.
"""

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from gradindex.data.caption_list import Caption, Captions
from gradindex.errors import DataError
from gradindex.wording import counted

# In the order of preference: `.caption` is what sd-scripts takes when nothing else is said.
SIDECAR_SUFFIXES = (".caption", ".txt")
MOST_BYTES = 2**20  # of a sidecar; a longer file is no caption

# sd-scripts, config_util.py: the number before the first `_` says how often a picture is drawn in
# an epoch, the rest of the folder's name is the caption; a folder of 0 repeats is not trained on.
_REPEATS = re.compile(r"0*[1-9][0-9]*_(?P<tokens>.*\S.*)")


def folder_captions(root: Path, files: Sequence[str], sidecars: Collection[str]) -> Captions | None:
    """Return the captions of a plain folder's pictures; no file is read yet.

    Args:
        root: the folder.
        files: relative paths of the N pictures, with slashes.
        sidecars: relative paths of all files there whose suffix is one of a sidecar.

    Returns:
        None where no picture has a sidecar, or lies in a folder of kohya's.
    """
    sidecar_of_stem = _by_stem(sidecars)
    found: list[Sequence[str]] = [sidecar_of_stem.get(_stem(file), ()) for file in files]
    tokens = [class_tokens(file) for file in files]
    origins = sorted({_suffix(names[0]) for names in found if names})
    origin = " and ".join(origins) + " files beside the pictures" if origins else ""
    notes = []
    named = [row for row, names in enumerate(found) if not names and tokens[row] is not None]
    if named:
        from_folders = "the names of folders like " + repr(_folder(files[named[0]]))
        origin = f"{origin} and {from_folders}" if origin else from_folders
    if any(text is not None for text in tokens):
        notes.append("repeats of kohya's folders do not count, a picture is one row")
    both = sum(len(names) > 1 for names in found)
    if both:
        having = counted(both, "picture has", "pictures have")
        notes.append(f"{having} a .caption and a .txt, of which the first is taken")
    if not origin:
        return None

    def read(row: int) -> Caption:
        if found[row]:
            return read_sidecar(root / found[row][0])
        return Caption(tokens[row])

    rest = "more lines, of which only the first is taken"
    of_more = f"file has {rest}", f"files have {rest}"
    return Captions(len(files), read, origin, of_more, notes)


def class_tokens(file: str) -> str | None:
    """Return the caption that the name of a picture's folder gives, as sd-scripts reads it.

    >>> class_tokens("10_sks dog/0.png"), class_tokens("train/5_a_b/0.png")
    ('sks dog', 'a_b')
    >>> [class_tokens(file) for file in ("0.png", "dog/0.png", "0_dog/0.png", "10_/0.png")]
    [None, None, None, None]
    """
    match = _REPEATS.fullmatch(_folder(file))
    return match["tokens"].strip() if match else None


def find_sidecar(picture: Path) -> Path | None:
    """Return the text file beside a picture that holds its caption; None where there is none."""
    for suffix in SIDECAR_SUFFIXES:
        file = picture.with_suffix(suffix)
        if file != picture and file.is_file():
            return file
    return None


def read_sidecar(file: Path) -> Caption:
    """Return the caption in a text file: its first line, without white space around it.

    That is what sd-scripts takes (`read_caption`). An empty file is an empty caption.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    first, *others = read_text(file).split("\n")
    return Caption(first.strip(), any(line.strip() for line in others))


def read_text(file: Path) -> str:
    r"""Return the text of a sidecar; its lines end with `\n`, and a byte order mark is taken off.

    Raises:
        DataError: it cannot be read, is not UTF-8, or holds more than a caption does.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"caption {file}: cannot be read ({error.strerror})") from error
    if len(content) > MOST_BYTES:
        raise DataError(f"caption {file}: longer than {MOST_BYTES:,} bytes; is it a caption?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # as UTF-16 has it, with or without a byte order mark
        raise DataError(f"caption {file}: not UTF-8 text; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _by_stem(sidecars: Collection[str]) -> dict[str, list[str]]:
    """Return {path without suffix: sidecars, the preferred one first}."""
    sidecars_of: dict[str, list[str]] = {}
    for name in sorted(sidecars, key=lambda name: (SIDECAR_SUFFIXES.index(_suffix(name)), name)):
        sidecars_of.setdefault(_stem(name), []).append(name)
    return sidecars_of


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _folder(file: str) -> str:
    """The name of the folder that a file lies in; empty for the data set's own."""
    return os.path.basename(os.path.dirname(file))
