"""The small pictures of a page: each is stored once, in the page's style sheet, within a budget."""

import base64
import io
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, features

PIXEL_ART = 64  # pixels: a picture whose longer side is below this keeps its very pixels, if it can

# From the best on: the longer side in pixels at the most, and the quality of WebP.
RUNGS = (
    *((256, 82), (224, 80), (192, 78), (160, 76), (144, 74), (128, 72), (112, 68), (96, 64)),
    *((80, 58), (64, 50), (56, 40), (48, 30), (40, 20)),
)
LOSSLESS = -1  # the rung of pixel art


class Thumbnail(NamedTuple):
    """A picture in a page's style sheet.

    Attributes:
        name: of its class. is_small: whether it is enlarged without smoothing.
    """

    name: str
    is_small: bool

    @property
    def classes(self) -> str:
        """What its element has as `class`."""
        return f"{self.name} small" if self.is_small else self.name


class Thumbnails:
    """The pictures of a page, each encoded once, as well as the bytes that are left allow.

    Args:
        picture_of: the training picture of a row; None where it is gone. It may fail.
        budget: bytes that all may take in the page.
        count: how many there are going to be; a query's counts as `weight` of a row's.
        side: pixels of the longer side, at most.
    """

    def __init__(
        self,
        picture_of: Callable[[int], Image.Image | None],
        budget: float,
        count: float,
        side: int = RUNGS[0][0],
    ) -> None:
        self._picture_of = picture_of
        self._budget, self._count = budget, count
        self._best = next(number for number, rung in enumerate(RUNGS) if rung[0] <= side)
        self._rung = self._best  # the last one taken
        self._of_row: dict[int, Thumbnail | None] = {}
        self._of_uri: dict[str, Thumbnail] = {}

    def of_row(self, row: int) -> Thumbnail | None:
        """Return the training picture of a row; None where it is gone, or does not open."""
        if row not in self._of_row:
            self._of_row[row] = self.of(lambda: self._picture_of(row))
        return self._of_row[row]

    def of(
        self, open_picture: Callable[[], Image.Image | None], weight: float = 1
    ) -> Thumbnail | None:
        """Return a picture that is opened so; None where it is gone, or does not open.

        Args:
            weight: its share of the bytes that are left, in shares of a training picture's.
        """
        share = self._budget * weight / max(self._count, weight)
        self._count -= weight
        try:
            picture = open_picture()
            if picture is None:
                return None
            uri, is_small = self._encoded(picture.convert("RGB"), share, weight)
        except Exception:  # Pillow raises errors of many types for files that are damaged
            return None
        if uri not in self._of_uri:
            self._budget -= len(uri)
            self._of_uri[uri] = Thumbnail(f"p{len(self._of_uri)}", is_small)
        return self._of_uri[uri]

    def style_sheet(self) -> str:
        """Return the rules of CSS that hold the pictures, a line each."""
        rules = [
            f".{kept.name}{{background-image:url({uri})}}" for uri, kept in self._of_uri.items()
        ]
        return "\n".join(rules)

    def _encoded(self, picture: Image.Image, share: float, weight: float) -> tuple[str, bool]:
        """The first URI of a picture that is no longer than its share, or the last one.

        Pictures are tried from one rung above the last one taken, so that they look alike.
        """
        is_small = max(picture.size) < PIXEL_ART
        if is_small and len(uri := _data_uri(picture, LOSSLESS)) <= share:
            return uri, True
        begin = max(self._best, self._rung - 1) if weight == 1 else self._best
        for rung in range(begin, len(RUNGS)):
            uri = _data_uri(picture, rung)
            if len(uri) <= share:
                break
        if weight == 1:
            self._rung = rung
        return uri, is_small


def _data_uri(picture: Image.Image, rung: int) -> str:
    """A picture as a URI that holds it: WebP, or else PNG and JPEG."""
    stream = io.BytesIO()
    webp = features.check("webp")
    if rung == LOSSLESS:
        kind = "webp" if webp else "png"
        picture.save(stream, kind, lossless=True)
    else:
        side, quality = RUNGS[rung]
        small = picture.copy()
        small.thumbnail((side, side))
        kind = "webp" if webp else "jpeg"
        small.save(stream, kind, quality=quality)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
