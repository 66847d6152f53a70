"""Pictures that come in, checked and kept in memory, and training pictures that go out."""

import hashlib
import io
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import PurePosixPath
from threading import Lock, Semaphore

from fastapi import HTTPException
from PIL import Image, features

from gradindex.data.images import picture_fault, to_thumbnail
from gradindex.data.prompts import prompt_of

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
UPLOAD_BYTES = 32 << 20
DECODING = Semaphore(2)  # large pictures that are in memory at once
UPLOAD_PIXELS = 50_000_000
KEPT_BYTES = 256 << 20  # of uploads together; the oldest ones go first
NAME_LETTERS = 200
SIDE = 2048  # pixels of a picture that goes out, at the most
PIXEL_ART = 256  # pixels: a picture that is no larger goes out as it is


@dataclass(frozen=True)
class Upload:
    """A picture that came in.

    Attributes:
        key: SHA-256 hex of its bytes.
        name: that its sender gave it, without folders.
        prompt: the one inside; None: there is none.
    """

    key: str
    name: str
    content: bytes
    width: int
    height: int
    prompt: str | None

    def open(self) -> Image.Image:
        """Return the picture, opened and not yet decoded."""
        return _opened(self.content)

    def thumbnail(self, side: int) -> Image.Image:
        """Return the picture upright, in RGB, no larger than `side` pixels."""
        with DECODING, self.open() as picture:
            return to_thumbnail(picture, side)


def read_upload(content: bytes, filename: str | None) -> Upload:
    """Return a picture that came in, of which the head alone is read.

    Raises:
        HTTPException: 413: too many bytes or pixels; 415: no picture, or of another format.
    """
    if len(content) > UPLOAD_BYTES:
        raise HTTPException(413, f"picture: more than {UPLOAD_BYTES >> 20} MiB; give a smaller one")
    name = upload_name(filename)
    try:
        with _opened(content) as picture:
            width, height = picture.size
            prompt = prompt_of(picture) if width * height <= UPLOAD_PIXELS else None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise HTTPException(413, _too_many_pixels(name)) from None
    except Exception as error:  # Pillow raises whatever damaged bytes lead it to
        text = f"{name}: not a picture that opens ({picture_fault(error)})"
        raise HTTPException(415, f"{text}; give {', '.join(FORMATS)}") from error
    if width * height > UPLOAD_PIXELS:
        raise HTTPException(413, _too_many_pixels(name))
    return Upload(hashlib.sha256(content).hexdigest(), name, content, width, height, prompt)


def upload_name(filename: str | None) -> str:
    r"""Return what an upload is called: the last part of its file's name.

    >>> upload_name("C:\\pictures\\gen.png"), upload_name("../../etc/passwd"), upload_name(None)
    ('gen.png', 'passwd', 'picture')
    """
    return PurePosixPath((filename or "").replace("\\", "/")).name[-NAME_LETTERS:] or "picture"


def suffixes() -> list[str]:
    """Return the endings of the names of FORMATS' files, and their media types.

    >>> {".png", "image/png", ".jpg"} <= {*suffixes()}
    True
    """
    Image.init()
    names = [suffix for suffix, name in Image.EXTENSION.items() if name in FORMATS]
    return sorted([*names, *(kind for name, kind in Image.MIME.items() if name in FORMATS)])


def _too_many_pixels(name: str) -> str:
    return f"{name}: more than {UPLOAD_PIXELS // 1_000_000} million pixels; give a smaller picture"


def _opened(content: bytes) -> Image.Image:
    """A picture of one of FORMATS, opened by Pillow."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    return Image.open(io.BytesIO(content), formats=formats)


class Uploads:
    """The last pictures that came in, in memory alone."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._lock = Lock()

    def keep(self, upload: Upload) -> None:
        """Keep a picture; the oldest ones make room for it."""
        with self._lock:
            self._kept.pop(upload.key, None)
            self._kept[upload.key] = upload
            while sum(len(kept.content) for kept in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)

    def get(self, key: str) -> Upload:
        """Return a picture; HTTPException 404 where it is not kept, or no longer."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        raise HTTPException(404, "upload: not kept any longer; give the picture again")


def encoded(picture: Image.Image) -> tuple[bytes, str]:
    """Return a picture as the bytes of a file, and their media type.

    It is made anew, so it is nothing but pixels: PNG for a small one, else WebP or JPEG.
    """
    stream = io.BytesIO()
    if max(picture.size) <= PIXEL_ART:
        picture.save(stream, "PNG")
        return stream.getvalue(), "image/png"
    kind = "webp" if features.check("webp") else "jpeg"
    picture.save(stream, kind, quality=90)
    return stream.getvalue(), f"image/{kind}"
