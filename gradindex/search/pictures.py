"""A query's pictures, of any kind, as the model takes them, and their class labels."""

import io
import logging
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gradindex.data.images import (
    Geometry,
    Size,
    geometry,
    nearest_image,
    open_encoded,
    picture_fault,
    require_channels,
    to_array,
)
from gradindex.data.prompts import prompt_of, sidecar_prompt
from gradindex.errors import CallError, first_line
from gradindex.wording import counted

LOGGER = logging.getLogger("gradindex")

# A path, the bytes of a file, a file that is open, a PIL picture, an array of uint8 pixels, or a
# tensor [channels, height, width] in [−1, 1]
Picture = str | Path | bytes | Image.Image | Any
ALLOWED = (
    "give paths, bytes, PIL pictures, uint8 arrays, or tensors [channels, height, width] in [-1, 1]"
)
CHANNELS = (1, 3, 4)  # of uint8 pixels: grey, colour, colour with transparency


def picture_list(pictures: Picture | Iterable[Picture]) -> list[Picture]:
    """Return a query's pictures as a list: one picture alone as one of them, a generator read once.

    Raises:
        CallError: it is neither a picture nor several.

    >>> picture_list("gen.png"), picture_list(name for name in ("a.png", "b.png"))
    (['gen.png'], ['a.png', 'b.png'])
    >>> len(picture_list(np.zeros((3, 8, 8)))), len(picture_list(np.zeros((2, 3, 8, 8))))
    (1, 2)
    """
    if _is_one_picture(pictures):
        return [pictures]
    if isinstance(pictures, Mapping) or hasattr(pictures, "parameters"):
        kind = type(pictures).__name__
        hint = "; of what a pipeline returns, give its .images" if "images" in dir(pictures) else ""
        raise CallError(f"pictures: a {kind} holds none; {ALLOWED}{hint}")
    try:
        return list(pictures)  # type: ignore[arg-type]
    except TypeError as error:
        raise CallError(f"pictures: a {type(pictures).__name__} is none; {ALLOWED}") from error


def picture_name(picture: Picture, number: int) -> str:
    """What a picture is called in results: its path, or its number.

    >>> picture_name("gen.png", 0), picture_name(np.zeros((1, 8, 8)), 1)
    ('gen.png', 'picture 1')
    """
    return str(picture) if isinstance(picture, str | Path) else f"picture {number}"


def read_pictures(pictures: Picture | Iterable[Picture], image: tuple[int, int, int]) -> np.ndarray:
    """Pictures as the model takes them, [Q, channels, height, width] float32 in [−1, 1].

    Args:
        pictures: see `picture_list`.
        image: channels, height and width of the model.

    Raises:
        CallError: there is none, one does not open, or a tensor is not of that shape.
    """
    read = read_with_origins(pictures, image)
    return np.stack([picture.array for picture in read])


class ReadPicture(NamedTuple):
    """A picture as the model takes it.

    Attributes:
        array: [channels, height, width] float32 in [−1, 1].
        geometry: where its pixels come from.
        prompt: the one that a program wrote into its file; None: there is none.
    """

    array: np.ndarray
    geometry: Geometry
    prompt: str | None


def read_with_origins(
    pictures: Picture | Iterable[Picture],
    image: tuple[int, int, int],
    buckets: Sequence[Size] | None = None,
) -> list[ReadPicture]:
    """Pictures as the model takes them, and where they come from; see `read_pictures`.

    Args:
        buckets: other heights and widths, of which each picture gets the nearest.
    """
    read = [
        _read_picture(picture, number, image, buckets)
        for number, picture in enumerate(picture_list(pictures))
    ]
    if not read:
        raise CallError("pictures: give at least one")
    return read


def _is_one_picture(pictures: Any) -> bool:
    """Whether an argument is a picture, not several of them."""
    one = (str, Path, bytes, bytearray, memoryview, Image.Image)
    is_tensor = hasattr(pictures, "shape") and len(pictures.shape) in (2, 3)
    return isinstance(pictures, one) or is_tensor or hasattr(pictures, "read")


def _read_picture(
    picture: Picture, number: int, image: tuple[int, int, int], buckets: Sequence[Size] | None
) -> ReadPicture:
    name = picture_name(picture, number)
    if isinstance(picture, str | Path):
        _require_file(picture)
        return _read_file(picture, name, image, buckets)
    if isinstance(picture, bytes | bytearray | memoryview):
        return _read_file(io.BytesIO(picture), name, image, buckets)
    if hasattr(picture, "read"):
        return _read_file(picture, name, image, buckets)
    if isinstance(picture, Image.Image):
        return _to_array(picture, name, image, buckets)
    if (pixels := picture_of_pixels(picture)) is not None:
        return _to_array(pixels, name, image, buckets)
    array = _read_tensor(picture, name, image, buckets)
    height, width = array.shape[1:]
    return ReadPicture(array, Geometry((height, width), (0, 0)), None)


def _require_file(file: str | Path) -> None:
    """Raise CallError, with what to give, unless a path is one of a file."""
    path = Path(file)
    problem = None
    if path.is_dir():
        problem = (
            f"a folder; give its pictures one by one: in a shell {path}/*.png, in Python"
            f" Path({str(path)!r}).glob('*.png')"
        )
    elif "://" in str(file):
        problem = "an address; download it, and give the file or its bytes"
    elif not path.exists():
        problem = "no such file"
        if any(letter in str(file) for letter in "*?["):
            problem += (
                "; a pattern is not expanded: in Python give what glob.glob finds, in a shell it"
                " matches nothing"
            )
    if problem:
        raise CallError(f"{file}: not a picture that opens ({problem})")


def _read_file(
    file: Any, name: str, image: tuple[int, int, int], buckets: Sequence[Size] | None
) -> ReadPicture:
    """The picture in a file, given as a path or open."""
    require_channels(image[0])
    try:
        opened = open_encoded(file)
    except Exception as error:  # Pillow raises whatever damaged bytes lead it to
        raise CallError(f"{name}: not a picture that opens ({picture_fault(error)})") from error
    with opened:
        return _to_array(opened, name, image, buckets)


def _to_array(
    picture: Image.Image, name: str, image: tuple[int, int, int], buckets: Sequence[Size] | None
) -> ReadPicture:
    """`to_array` of a picture, whose errors name it."""
    require_channels(image[0])
    try:
        # Before the picture is decoded: then Pillow may have taken the EXIF away.
        image = nearest_image(picture, image, buckets)
        prompt, origin = prompt_of(picture), geometry(picture, image)
        return ReadPicture(to_array(picture, image), origin, prompt)
    except MemoryError:  # the machine's fault, not the picture's
        raise
    except Exception as error:
        raise CallError(f"{name}: not a picture that opens ({picture_fault(error)})") from error


def picture_of_pixels(picture: Any) -> Image.Image | None:
    """A picture that is an array or tensor of uint8, as a program's own pixels are; None of others.

    It is [height, width], [height, width, channels] or [channels, height, width], with 1, 3 or 4
    channels.

    Raises:
        CallError: it has another shape.
    """
    if str(getattr(picture, "dtype", "")).removeprefix("torch.") != "uint8":
        return None
    array = np.asarray(picture.cpu() if hasattr(picture, "cpu") else picture)
    if array.ndim == 3 and array.shape[2] not in CHANNELS and array.shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not array.size or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS)):
        raise CallError(
            f"a uint8 picture of shape {tuple(picture.shape)}: give [height, width, channels] or"
            " [channels, height, width] with 1, 3 or 4 channels"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _read_tensor(
    tensor: Any, name: str, image: tuple[int, int, int], buckets: Sequence[Size] | None
) -> np.ndarray:
    """A tensor or array that is a picture already, as float32."""
    if not (isinstance(tensor, list | tuple) or hasattr(tensor, "__array__")):
        raise CallError(f"{name}: a {type(tensor).__name__} is no picture; {ALLOWED}")
    if hasattr(tensor, "detach"):  # a torch tensor of any type, on any device
        tensor = tensor.detach().float().cpu()
    try:
        array = np.asarray(tensor, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise CallError(f"{name}: no picture ({first_line(error)}); {ALLOWED}") from error
    allowed = [(image[0], *size) for size in buckets or [image[1:]]]
    if array.shape not in allowed or not np.isfinite(array).all() or np.abs(array).max() > 1:
        or_others = " or the size of another bucket," if len(allowed) > 1 else ""
        raise CallError(
            f"a picture tensor of shape {array.shape}: give {image}{or_others} with values in"
            " [-1, 1]"
        )
    return array


def read_labels(
    class_label: int | Sequence[int] | None, count: int, classes: int | None
) -> list[int] | None:
    """The class labels of `count` queries; None for an unconditional model.

    Args:
        class_label: one for all, or one each.
        classes: how many the model knows; None: it is unconditional.

    >>> read_labels(3, count=2, classes=10)
    [3, 3]
    """
    if classes is None:
        if class_label is not None:
            raise CallError(f"class_label = {class_label}: the model is not class-conditional")
        return None
    if class_label is None:
        raise CallError(f"the model is class-conditional: give class_label, 0 to {classes - 1}")
    try:
        labels = _whole_numbers(class_label, count)
    except TypeError as error:
        raise CallError(f"class_label = {class_label!r}: give whole numbers") from error
    if len(labels) != count or not all(0 <= label < classes for label in labels):
        raise CallError(
            f"class_label = {class_label}: give one from 0 to {classes - 1} per picture"
        )
    return labels


def read_prompts(
    prompt: str | Sequence[str] | None,
    pictures: Sequence[Picture],
    read: Sequence[ReadPicture],
    option: str = "prompt",
) -> list[str]:
    """The prompts of queries to a model that is given captions.

    Args:
        prompt: one for all, or one each; None: that of the file beside each picture, or else the
            one inside, which is said.
        pictures: as they were given. read: the same, read. option: that gives the prompts.

    Raises:
        CallError: a picture has none, or one that is not UTF-8; or they are not as many as the
            pictures.
    """
    count = len(pictures)
    if prompt is not None:
        prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
        if len(prompts) != count or not all(isinstance(text, str) for text in prompts):
            raise CallError(
                f"{option}: {len(prompts)} for {counted(count, 'picture')}; give one, or one each"
            )
        for given in prompts:
            if any("\ud800" <= letter <= "\udfff" for letter in given):  # bytes that are no UTF-8
                raise CallError(f"{option} = {given!r}: not UTF-8")
        return prompts
    prompts = []
    for number, (picture, as_read) in enumerate(zip(pictures, read, strict=True)):
        beside = sidecar_prompt(picture) if isinstance(picture, str | Path) else None
        text = as_read.prompt if beside is None else beside
        name = picture_name(picture, number)
        if text is None:
            raise CallError(
                f"{name}: the model is given captions; give the prompt that the picture was"
                f" generated with ({option}=), or '' for none"
            )
        LOGGER.info("%s: prompt %r, found %s it", name, text, "in" if beside is None else "beside")
        prompts.append(text)
    return prompts


def _whole_numbers(class_label: Any, count: int) -> list[int]:
    """One label, of NumPy or a tensor too, `count` times, or each of several; else TypeError."""
    if hasattr(class_label, "tolist"):
        class_label = class_label.tolist()
    if isinstance(class_label, Iterable):
        return [operator.index(label) for label in class_label]
    return [operator.index(class_label)] * count
