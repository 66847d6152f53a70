"""Decode a picture of any format, mode and size, and bring it to the shape that a model takes."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from gradindex.errors import CallError, first_line

Size = tuple[int, int]  # height and width

FIRST_TRANSPOSED = 5  # EXIF orientations from here on exchange height and width
THUMBNAIL_SIDE = 256  # pixels of a thumbnail's longer side, at most
TRANSPARENT = "transparent, taken without transparency"  # of `changes`
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**27)  # of a picture; Pillow refuses larger files

# Formats that Pillow knows by name alone, without a decoder of its own, or that hold no picture.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}


def picture_suffixes() -> set[str]:
    """Return the suffixes of all formats that Pillow decodes, in small letters.

    >>> {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".gif"} <= picture_suffixes()
    True
    """
    readable = _decoded_formats()
    return {suffix for suffix, name in Image.EXTENSION.items() if name in readable}


def open_encoded(file: Any) -> Image.Image:
    """Return the picture in a file, opened by Pillow, which decodes nothing yet.

    Its first bytes say what it is, not its name. For a format of `NOT_DECODED` Pillow would run
    another program (Ghostscript for EPS) over it: it is no picture here.

    Args:
        file: a path, or an open file.
    """
    if hasattr(file, "read"):
        return Image.open(file, formats=_decoded_formats())
    stream = _EncodedFile(io.FileIO(file))
    try:
        picture = Image.open(stream, formats=_decoded_formats())
    except BaseException:
        stream.close()
        raise
    picture._exclusive_fp = True  # so that Pillow closes the file, as one that it opened itself
    return picture


class _EncodedFile(io.BufferedReader):
    """A file of which no read takes more memory than the rest of it is large.

    Pillow asks for as much as a file declares.
    """

    def __init__(self, file: io.FileIO) -> None:
        super().__init__(file)
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return so many of the next bytes, all of them for −1, fewer where the file ends."""
        rest = max(0, self._size - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest))


@cache
def _decoded_formats() -> list[str]:
    """The names of all formats that Pillow decodes itself."""
    Image.init()
    return [name for name in Image.ID if name in Image.OPEN and name not in NOT_DECODED]


def require_channels(channels: int) -> None:
    """Raise CallError unless a model takes as many channels as pictures have."""
    if channels not in (1, 3):
        raise CallError(
            f"the model takes {channels} channels; pictures have 1 (grey) or 3 (colour)"
        )


def to_array(picture: Image.Image, image: tuple[int, int, int]) -> np.ndarray:
    """Return a picture as float32 [channels, height, width] in [−1, 1], `pixel / 127.5 − 1`.

    A picture is turned upright as its EXIF orientation says, as `datasets` does. One of the model's
    size keeps its pixels. Any other is resized (bilinear, shorter side first) and its centre
    cropped, to the pixel as torchvision's Resize and CenterCrop do. Pillow converts between grey
    and colour, and drops transparency. This is what the training examples of diffusers do.

    Args:
        picture: opened by Pillow; it is decoded here, if it was not yet.
        image: channels, height and width that the model takes.

    Raises:
        CallError: the model takes neither 1 nor 3 channels, or the picture has more than 16 bits a
            channel, or is too long for its width.

    >>> to_array(Image.new("L", (4, 2), color=255), (1, 2, 2))
    array([[[1., 1.],
            [1., 1.]]], dtype=float32)
    """
    channels, height, width = image
    require_channels(channels)
    picture = _upright_8_bits(picture)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = _resize_and_crop(picture, height, width)
    pixels = np.asarray(picture, dtype=np.float32).reshape(height, width, channels)
    return np.ascontiguousarray((pixels / 127.5 - 1).transpose(2, 0, 1))


def to_mask(picture: Image.Image, image: tuple[int, int, int]) -> np.ndarray:
    """Return a mask's first channel as float32 [1, height, width] in 0 … 1, `value / 255`.

    It is turned, resized and cut as `to_array` does with a picture of its size.

    Args:
        picture: the mask, opened by Pillow. image: what the model takes; channels do not count.

    >>> to_mask(Image.new("RGB", (4, 2), color=(255, 0, 0)), (3, 2, 2))
    array([[[1., 1.],
            [1., 1.]]], dtype=float32)
    """
    first = _upright_8_bits(picture).convert("RGB").getchannel(0)
    return (to_array(first, (1, *image[1:])) + 1) / 2


def opacity(picture: Image.Image) -> Image.Image:
    """Return the alpha channel of a picture, upright and grey; white where it has none."""
    upright = _upright_8_bits(picture)
    if not upright.has_transparency_data:
        return Image.new("L", upright.size, 255)
    return upright.convert("RGBA").getchannel("A")


@dataclass(frozen=True)
class Geometry:
    """Where the pixels come from that a model takes of a picture.

    Attributes:
        original: height and width of the upright picture.
        corner: top and left of what is cut out of the resized picture.
    """

    original: tuple[int, int]
    corner: tuple[int, int]


class DecodedPicture(NamedTuple):
    """A training picture as the model takes it, and its mask.

    Attributes:
        array: [channels, height, width] float32 in [−1, 1].
        content: 16 hex digits of its bytes, see `content_digest`.
        geometry: where its pixels come from.
        mask: [1, height, width] float32 in 0 … 1; None where the data set has no masks.
    """

    array: np.ndarray
    content: str
    geometry: Geometry
    mask: np.ndarray | None


def geometry(picture: Image.Image, image: tuple[int, int, int]) -> Geometry:
    """Return where the pixels come from that `to_array` gives of a picture.

    None is decoded but a TIFF that is not upright, whose size may be that before it was turned or
    after, as Pillow's version has it; when it is decoded Pillow turns it and forgets that it did.

    >>> geometry(Image.new("L", (4, 2)), (1, 2, 2))
    Geometry(original=(2, 4), corner=(0, 1))
    """
    height, width = _upright_size(picture)
    if (height, width) == image[1:]:
        return Geometry((height, width), (0, 0))
    covering = _covering_size(height, width, *image[1:])
    return Geometry((height, width), _centre_corner(covering, *image[1:]))


def changes(
    picture: Image.Image, image: tuple[int, int, int], sizes: Sequence[Size] | None = None
) -> list[str]:
    """Return what `to_array` does to a picture, of which only the head was read.

    Args:
        image, sizes: see `nearest_image`; a size is told where there is only one.
    """
    channels, height, width = nearest_image(picture, image, sizes)
    found = []
    is_grey = picture.mode in ("1", "L", "LA", "La", "I") or picture.mode.startswith("I;16")
    if is_grey and channels == 3:
        found.append("grey, made colour")
    if not is_grey and channels == 1:
        found.append("in colour, made grey")
    if picture.has_transparency_data:
        found.append(TRANSPARENT)
    if getattr(picture, "is_animated", False):  # or a TIFF of several pages
        found.append("of several frames, the first taken")
    if picture.size != (width, height):
        found.append("resized" if sizes else f"resized to {width}x{height}")
    if is_turned(picture):
        found.append("turned upright by EXIF")
    return found


def nearest_size(picture: Image.Image, sizes: Sequence[Size]) -> Size:
    """Return the size of a picture, if it is one of `sizes`, or the one of the nearest shape.

    That is the first of those whose width / height differs least from the picture's, as in kohya's
    sd-scripts (`BucketManager.select_bucket`). The picture is not decoded.

    >>> nearest_size(Image.new("L", (30, 20)), [(8, 16), (8, 8), (8, 12)])
    (8, 12)
    """
    height, width = _upright_size(picture)
    if (height, width) in sizes:
        return height, width
    return min(sizes, key=lambda size: abs(size[1] / size[0] - width / height))


def nearest_image(
    picture: Image.Image, image: tuple[int, int, int], sizes: Sequence[Size] | None
) -> tuple[int, int, int]:
    """Return channels, height and width that a model takes of a picture.

    Args:
        image: those of a model that takes one size.
        sizes: height and width of its buckets; None: it has none.
    """
    return (image[0], *nearest_size(picture, sizes)) if sizes else image


def to_thumbnail(picture: Image.Image, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """Return a picture upright, in RGB and no larger than `side` pixels, for people to look at."""
    # A JPEG is decoded at a fraction of its size; other formats take no notice.
    picture.draft(None, (2 * side, 2 * side))
    thumbnail = _upright_8_bits(picture).convert("RGB")
    thumbnail.thumbnail((side, side))
    return thumbnail


def read_thumbnail(file: Any, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """Return the picture of a file, a path or one that is open, as `to_thumbnail` shows it."""
    with open_encoded(file) as picture:
        return to_thumbnail(picture, side)


def picture_fault(error: BaseException) -> str:
    """Return why a picture cannot be read, from what Pillow or the file system raised.

    >>> picture_fault(FileNotFoundError(2, "No such file or directory", "a.png"))
    'No such file or directory'
    >>> picture_fault(ValueError("row 3 has none"))
    'row 3 has none'
    """
    if isinstance(error, UnidentifiedImageError):  # whose text may be the address of some bytes
        return "no format that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)


def is_turned(picture: Image.Image) -> bool:
    """Whether a picture's EXIF orientation says that its pixels are not upright."""
    return picture.getexif().get(ExifTags.Base.Orientation, 1) != 1


def _upright_size(picture: Image.Image) -> Size:
    """Height and width of a picture turned upright; none but a turned TIFF is decoded."""
    if picture.format == "TIFF" and is_turned(picture):
        picture.load()
    width, height = picture.size
    if picture.getexif().get(ExifTags.Base.Orientation, 1) >= FIRST_TRANSPOSED:
        width, height = height, width
    return height, width


def _upright_8_bits(picture: Image.Image) -> Image.Image:
    """Return a picture as every reader here sees it: upright, and of 8 bits a channel.

    It is the one place that knows EXIF orientation and deep pixels.
    """
    picture.load()  # Pillow itself turns a TIFF when it loads it, and then takes the tag away
    upright = ImageOps.exif_transpose(picture) if is_turned(picture) else picture
    # A PGM of 16 bits has mode I, which is also that of 32 bits, but Pillow scales it to 65535.
    is_deep_pgm = picture.mode == "I" and picture.format == "PPM"
    if upright.mode.startswith("I;16") or is_deep_pgm:
        # Pillow's own conversion clips 16 bits at 255. 65535 // 257 is 255.
        return Image.fromarray((np.asarray(upright) // 257).astype(np.uint8))
    if upright.mode in ("I", "F"):
        raise CallError(f"a picture of mode {upright.mode!r}: give 8 or 16 bits a channel")
    return upright


def _resize_and_crop(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Return the centre of a picture that was resized to just cover `height` × `width` pixels.

    torchvision, transforms/functional.py: `Resize(size)` makes the shorter side `size` and the
    longer one `int(size * long / short)`, which truncates (`_compute_resized_output_size`);
    `CenterCrop` begins at `int(round((side - size) / 2.0))`, which rounds halves to even
    (`center_crop`). Its models are square; where ours is not, the side that just fits takes the
    part of the shorter one.
    """
    covering = _covering_size(picture.height, picture.width, height, width)
    if covering[0] * covering[1] > MOST_PIXELS:
        raise CallError(
            f"a picture of {picture.width} × {picture.height} pixels is too narrow to be resized"
            f" to {width} × {height}"
        )
    if covering != picture.size:
        picture = picture.resize(covering, Image.Resampling.BILINEAR)
    top, left = _centre_corner(covering, height, width)
    return picture.crop((left, top, left + width, top + height))


def _covering_size(
    picture_height: int, picture_width: int, height: int, width: int
) -> tuple[int, int]:
    """Width and height of a picture that was resized to just cover `height` × `width` pixels."""
    if width * picture_height >= height * picture_width:
        return width, int(width * picture_height / picture_width)
    return int(height * picture_width / picture_height), height


def _centre_corner(covering: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Top and left of the centre of a picture of some width and height."""
    return round((covering[1] - height) / 2.0), round((covering[0] - width) / 2.0)
