"""Decode a picture of any format, mode and size, and bring it to the shape that a model takes."""

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from gradindex.errors import CallError

THUMBNAIL_SIDE = 256  # pixels of a thumbnail's longer side, at most
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**27)  # of a picture; Pillow refuses larger files

# Formats that Pillow knows by name alone, without a decoder of its own, or that hold no picture.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}


def picture_suffixes() -> set[str]:
    """Return the suffixes of all formats that Pillow decodes, in small letters.

    >>> {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".gif"} <= picture_suffixes()
    True
    """
    Image.init()
    readable = Image.OPEN.keys() - NOT_DECODED
    return {suffix for suffix, name in Image.EXTENSION.items() if name in readable}


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


def to_thumbnail(picture: Image.Image) -> Image.Image:
    """Return a picture upright, in RGB and no larger than 256 pixels, for people to look at."""
    # A JPEG is decoded at a fraction of its size; other formats take no notice.
    picture.draft(None, (2 * THUMBNAIL_SIDE, 2 * THUMBNAIL_SIDE))
    thumbnail = _upright_8_bits(picture).convert("RGB")
    thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return thumbnail


def read_thumbnail(file: str | Path) -> Image.Image:
    """Return the picture of a file as `to_thumbnail` shows it."""
    with Image.open(file) as picture:
        return to_thumbnail(picture)


def is_turned(picture: Image.Image) -> bool:
    """Whether a picture's EXIF orientation says that its pixels are not upright."""
    return picture.getexif().get(ExifTags.Base.Orientation, 1) != 1


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
    if width * picture.height >= height * picture.width:
        covering = (width, int(width * picture.height / picture.width))
    else:
        covering = (int(height * picture.width / picture.height), height)
    if covering[0] * covering[1] > MOST_PIXELS:
        raise CallError(
            f"a picture of {picture.width} × {picture.height} pixels is too narrow to be resized"
            f" to {width} × {height}"
        )
    if covering != picture.size:
        picture = picture.resize(covering, Image.Resampling.BILINEAR)
    left = round((picture.width - width) / 2.0)
    top = round((picture.height - height) / 2.0)
    return picture.crop((left, top, left + width, top + height))
