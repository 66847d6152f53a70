"""The small pictures of a page: each is stored once, in the page's style sheet."""

import base64
import html
import io
from collections.abc import Callable

from PIL import Image, features

from gradindex.report.printable import printable

SIZE = 256  # pixels of the longer side, at the most
PIXEL_ART = 64  # pixels: a picture up to this size is stored and shown with its very pixels
QUALITY = 80  # of WebP, for larger ones

# A picture is the background of an element <img>, whose own picture is one transparent pixel.
TRANSPARENT = (
    "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"  # 1 × 1
)

GONE = "<div class=gone>picture not found, or damaged</div>"


def read_small(open_picture: Callable[[], Image.Image | None]) -> Image.Image | None:
    """Return a picture at its size on a page; None where there is none, or it does not open.

    Args:
        open_picture: opens and decodes it; None where it is gone.
    """
    try:
        picture = open_picture()
        return None if picture is None else _shrunk(picture)
    except Exception:  # Pillow raises errors of many types for files that are damaged
        return None


def _shrunk(picture: Image.Image) -> Image.Image:
    """The picture in RGB, of at most 256 × 256 pixels."""
    small = picture.convert("RGB")
    small.thumbnail((SIZE, SIZE))
    return small


class Thumbnails:
    """The pictures of a page, each encoded once.

    Args:
        picture_of: the training picture of a row; None where it is gone. It may fail.
    """

    def __init__(self, picture_of: Callable[[int], Image.Image | None]) -> None:
        self._picture_of = picture_of
        self._element_of_row: dict[int, str] = {}
        self._class_of_uri: dict[str, str] = {}

    def of_row(self, row: int, name: str) -> str:
        """Return the training picture of a row as an element of HTML, or that it is gone."""
        if row not in self._element_of_row:
            picture = read_small(lambda: self._picture_of(row))
            self._element_of_row[row] = self.element(picture, name)
        return self._element_of_row[row]

    def element(self, picture: Image.Image | None, name: str) -> str:
        """Return a picture as an element `<img>`, whose class the style sheet has."""
        if picture is None:
            return GONE
        picture = _shrunk(picture)
        is_small = max(picture.size) <= PIXEL_ART
        uri = _data_uri(picture, is_small)
        name_of_class = self._class_of_uri.setdefault(uri, f"p{len(self._class_of_uri)}")
        classes = f'"{name_of_class} small"' if is_small else name_of_class
        alt = html.escape(printable(name))
        return f'<img class={classes} alt="{alt}" src="{TRANSPARENT}">'

    def style_sheet(self) -> str:
        """Return the rules of CSS that hold the pictures, a line each."""
        rules = [
            f".{name}{{background-image:url({uri})}}" for uri, name in self._class_of_uri.items()
        ]
        return "\n".join(rules)


def _data_uri(picture: Image.Image, lossless: bool) -> str:
    """A picture as a URI that holds it: WebP, or PNG where Pillow was built without WebP."""
    stream = io.BytesIO()
    kind = "webp" if features.check("webp") else "png"
    if kind == "webp":
        picture.save(stream, "WEBP", lossless=lossless, quality=QUALITY)
    else:
        picture.save(stream, "PNG")
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
