"""A small training set that draws itself: colour pictures of things by four invented artists.

An artist has papers, colours, an outline and two favourite things of their own, and a folder of
their name, so that whose picture it is can be told by eye. No two pictures are the same: place,
size, tilt, colours and details are drawn from a seed.
"""

import colorsys
import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from PIL import Image, ImageColor, ImageDraw

SIDE = 24  # pixels of a picture
ENLARGED = 8  # times as large it is drawn, so that its edges are smooth
PER_THING = 130  # pictures of each thing that an artist likes
OUTLINE = 10  # enlarged pixels

Point = tuple[float, float]
Colour = tuple[int, int, int]


class Pen:
    """Draws shapes in a thing's own coordinates: −1 … 1 from left to right and from top to bottom.

    Args:
        draw: of the enlarged picture.
        ink: the colour of outlines; None for shapes without.
        scale: enlarged pixels of 1. place: of (0, 0), in enlarged pixels.
        tilt: radians, clockwise.
    """

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        ink: str | None,
        scale: float,
        place: Point,
        tilt: float,
    ) -> None:
        self._draw, self._ink = draw, ink
        self._scale, self._place, self._tilt = scale, place, tilt

    def shape(self, points: Sequence[Point], colour: Colour | str) -> None:
        """Fill a polygon, and outline it in the artist's ink."""
        corners = [self._pixel(point) for point in points]
        self._draw.polygon(corners, colour)
        if self._ink is not None:
            ring = [*corners, *corners[:2]]
            self._draw.line(ring, self._ink, OUTLINE, joint="curve")

    def box(
        self, left: float, top: float, right: float, bottom: float, colour: Colour | str
    ) -> None:
        """Fill a rectangle."""
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def oval(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: Colour | str,
        end: float = math.tau,
    ) -> None:
        """Fill an ellipse around (x, y), of half a width and height, from its left end up to an
        angle.
        """
        angles = [math.pi + end * step / 40 for step in range(41)]
        points = [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]
        self.shape(points, colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour | str) -> None:
        """Draw a line of a width."""
        corners = [self._pixel(point) for point in points]
        self._draw.line(corners, colour, round(width * self._scale), joint="curve")

    def _pixel(self, point: Point) -> Point:
        """Where a point of the thing is in the enlarged picture."""
        x, y = point[0] * self._scale, point[1] * self._scale
        return (
            self._place[0] + x * math.cos(self._tilt) - y * math.sin(self._tilt),
            self._place[1] + x * math.sin(self._tilt) + y * math.cos(self._tilt),
        )


# --- things ---------------------------------------------------------------------------------------

DARK, PALE, WOOD = "#20242c", "#fffdf5", "#9a6238"


def house(pen: Pen, main: Colour, other: Colour, random: Random) -> None:
    """Walls, a roof with a chimney, a door and a window."""
    width = random.uniform(0.62, 0.78)
    pen.box(0.3, -0.85, 0.52, -0.3, other)
    pen.box(-width, -0.15, width, 0.95, main)
    pen.shape([(-width - 0.25, -0.12), (0, -0.98), (width + 0.25, -0.12)], other)
    pen.box(-width + 0.15, 0.25, -width + 0.5, 0.95, DARK)
    pen.box(0.05, 0.18, 0.48, 0.58, "#ffe88a")


def tree(pen: Pen, main: Colour, other: Colour, random: Random) -> None:
    """A trunk under a crown of three balls."""
    pen.box(-0.16, 0.2, 0.16, 1, other)
    spread = random.uniform(0.3, 0.45)
    for x, y, radius in ((-spread, 0.05, 0.48), (spread, 0.05, 0.48), (0, -0.42, 0.55)):
        pen.oval(x, y, radius, radius, main)


def fish(pen: Pen, main: Colour, other: Colour, random: Random) -> None:
    """A body with a tail, a fin, an eye and a stripe."""
    pen.shape([(0.45, 0), (1.0, -0.5), (1.0, 0.5)], other)
    pen.shape([(-0.3, -0.3), (0.15, -0.8), (0.4, -0.2)], other)
    height = random.uniform(0.45, 0.6)
    pen.oval(-0.15, 0, 0.78, height, main)
    pen.oval(-0.55, -0.12, 0.15, 0.15, PALE)
    pen.oval(-0.57, -0.12, 0.05, 0.05, DARK)
    pen.line([(0.05, -height * 0.8), (0.05, height * 0.8)], 0.13, other)


def boat(pen: Pen, main: Colour, other: Colour, random: Random) -> None:
    """A hull under two sails."""
    pen.line([(0, -1), (0, 0.4)], 0.1, DARK)
    pen.shape([(0.1, -0.95), (0.1, 0.25), (random.uniform(0.65, 0.85), 0.25)], PALE)
    pen.shape([(-0.1, -0.65), (-0.1, 0.25), (-0.6, 0.25)], other)
    pen.shape([(-0.95, 0.35), (0.95, 0.35), (0.6, 0.85), (-0.6, 0.85)], main)


def cat(pen: Pen, main: Colour, other: Colour, random: Random) -> None:
    """A face with ears, eyes, a nose and whiskers."""
    for side in (-1, 1):
        pen.shape([(side * 0.82, -0.95), (side * 0.8, 0), (side * 0.15, -0.55)], main)
    pen.oval(0, 0.12, 0.85, 0.75, main)
    gaze = random.uniform(-0.04, 0.04)
    for side in (-1, 1):
        pen.oval(side * 0.36, -0.02, 0.19, 0.22, PALE)
        pen.oval(side * 0.36 + gaze, 0, 0.09, 0.17, DARK)
        pen.line([(side * 0.35, 0.4), (side * 0.95, 0.3)], 0.07, DARK)
    pen.shape([(-0.16, 0.26), (0.16, 0.26), (0, 0.45)], other)


def balloon(pen: Pen, main: Colour, other: Colour, random: Random) -> None:
    """A hot-air balloon with a stripe, and its basket."""
    for side in (-1, 1):
        pen.line([(side * 0.4, 0.2), (side * 0.17, 0.75)], 0.07, WOOD)
    width = random.uniform(0.65, 0.78)
    pen.oval(0, -0.3, width, 0.7, main)
    pen.oval(0, -0.3, width * 0.4, 0.7, other)
    pen.box(-0.22, 0.68, 0.22, 1, WOOD)


def mushroom(pen: Pen, main: Colour, other: Colour, random: Random) -> None:
    """A pale stem under a cap with dots."""
    pen.oval(0, 0.45, 0.32, 0.5, PALE)
    pen.oval(0, 0.15, 0.95, random.uniform(0.9, 1.05), main, end=math.pi)
    for x, y in ((-0.5, -0.12), (0.5, -0.12), (0, -0.45)):
        pen.oval(x, y, 0.17, 0.17, PALE)


def heart(pen: Pen, main: Colour, other: Colour, random: Random) -> None:
    """A heart with a light on it."""
    points = []
    for step in range(60):
        angle = math.tau * step / 60
        y = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle)
        points.append((0.95 * math.sin(angle) ** 3, -(y - math.cos(4 * angle)) / 17))
    pen.shape(points, main)
    pen.oval(-0.42, -0.35, 0.2, random.uniform(0.1, 0.15), other)


# --- papers ---------------------------------------------------------------------------------------

STARS = ((0.08, 0.1), (0.3, 0.06), (0.72, 0.12), (0.93, 0.3), (0.06, 0.5), (0.9, 0.7), (0.15, 0.9))


def plain(draw: ImageDraw.ImageDraw, side: int, random: Random) -> None:
    """Leave the paper as it is."""


def stars(draw: ImageDraw.ImageDraw, side: int, random: Random) -> None:
    """Draw a night sky."""
    for across, down in STARS:
        x = side * (across + random.uniform(-0.02, 0.02))
        y = side * (down + random.uniform(-0.02, 0.02))
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), PALE)


def dots(draw: ImageDraw.ImageDraw, side: int, random: Random) -> None:
    """Draw polka dots, every other row half a gap to the right."""
    gap, radius = side / 3, side / 16
    for row in range(4):
        for column in range(-1, 4):
            x, y = gap * (column + 0.25 + row % 2 / 2), gap * (row + 0.25)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), PALE)


def meadow(draw: ImageDraw.ImageDraw, side: int, random: Random) -> None:
    """Draw grass below the sky."""
    draw.rectangle((0, side * random.uniform(0.66, 0.72), side, side), "#7cc35a")


# --- artists --------------------------------------------------------------------------------------

Thing = Callable[[Pen, Colour, Colour, Random], None]


class Artist(NamedTuple):
    """How one of the artists draws.

    Attributes:
        things: favourites. pattern: draws what is on the paper, whose side is in enlarged pixels.
        papers, colours: {name: colour}, one of each for a picture. others: second colours.
        ink: of outlines; None for none.
    """

    things: tuple[Thing, ...]
    pattern: Callable[[ImageDraw.ImageDraw, int, Random], None]
    papers: dict[str, str]
    colours: dict[str, str]
    others: tuple[str, ...]
    ink: str | None


ARTISTS = {
    "ann": Artist(
        things=(house, cat),
        pattern=plain,
        papers={"white": "#fdfbf4", "cream": "#f7e9c8"},
        colours={"red": "#e23b2e", "blue": "#2f6fde", "yellow": "#f7c325"},
        others=("#f08a24", "#45a9e6"),
        ink="#16181d",
    ),
    "bo": Artist(
        things=(boat, fish),
        pattern=stars,
        papers={"midnight": "#14204f", "violet": "#35205c"},
        colours={"mint": "#7fe3c0", "lemon": "#fbe67a", "peach": "#ffb08f"},
        others=("#b79cf2", "#ff8fb0"),
        ink=None,
    ),
    "cleo": Artist(
        things=(heart, cat),
        pattern=dots,
        papers={"rose": "#f9b9cb", "lilac": "#d5bdf0"},
        colours={"crimson": "#d8264f", "plum": "#8a2f9a", "coral": "#ff6f5e"},
        others=("#ffd54a", "#ffe3ec"),
        ink="#ffffff",
    ),
    "eva": Artist(
        things=(house, tree),
        pattern=meadow,
        papers={"sky": "#9fd8f7", "dawn": "#ffd9b0"},
        colours={"green": "#2f8a3d", "orange": "#f28c28", "purple": "#7b57c2"},
        others=("#8a5a33", "#f6cf3f"),
        ink=None,
    ),
}


class Drawn(NamedTuple):
    """One picture of the set, its path in the folder of the set, and what it shows."""

    name: str
    thing: str
    picture: Image.Image


def drawn_pictures(per_thing: int = PER_THING, seed: int = 0) -> Iterator[Drawn]:
    """Yield the pictures, artist by artist.

    >>> drawn = next(drawn_pictures())
    >>> drawn.name, drawn.thing, drawn.picture.size
    ('ann/red-house-on-cream-000.png', 'house', (24, 24))
    """
    for name, artist in ARTISTS.items():
        random = Random(f"{seed} {name}")
        for number in range(per_thing * len(artist.things)):
            thing = artist.things[number % len(artist.things)]
            paper = random.choice(list(artist.papers))
            colour = random.choice(list(artist.colours))
            yield Drawn(
                name=f"{name}/{colour}-{thing.__name__}-on-{paper}-{number:03d}.png",
                thing=thing.__name__,
                picture=_draw(artist, thing, artist.papers[paper], artist.colours[colour], random),
            )


def _draw(artist: Artist, thing: Thing, paper: str, colour: str, random: Random) -> Image.Image:
    """One picture, drawn large and reduced."""
    side = SIDE * ENLARGED
    picture = Image.new("RGB", (side, side), _varied(paper, random))
    draw = ImageDraw.Draw(picture)
    artist.pattern(draw, side, random)
    pen = Pen(
        draw,
        artist.ink,
        scale=side * random.uniform(0.38, 0.43),
        place=(side * random.uniform(0.47, 0.53), side * random.uniform(0.47, 0.53)),
        tilt=random.uniform(-0.04, 0.04),
    )
    other = random.choice(artist.others)
    thing(pen, _varied(colour, random), _varied(other, random), random)
    return picture.reduce(ENLARGED)


def _varied(colour: str, random: Random) -> Colour:
    """A colour, a little changed in hue and lightness."""
    red, green, blue = ImageColor.getrgb(colour)[:3]
    hue, lightness, saturation = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    hue = (hue + random.uniform(-0.015, 0.015)) % 1
    lightness = min(1, lightness * random.uniform(0.94, 1.06))
    red, green, blue = (
        round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, saturation)
    )
    return red, green, blue
