"""What a picture for a document is drawn on: an SVG or a PNG, neither of which needs a browser."""

import html
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from neuronprof.view import look

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

Box = tuple[float, float, float, float]  # left, top, right, bottom
Point = tuple[float, float]

_FINE = 2  # pixels of a PNG in one unit, as on screens of high density
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}
_NOT_IN_XML = dict.fromkeys((*range(32), 127, 65534, 65535), " ")


class Canvas(ABC):
    """A picture whose unit is a pixel of a usual screen, its origin at the top left; colours are #rrggbb."""

    fineness = 1  # of its smallest marks in one unit

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height

    @abstractmethod
    def boxes(self, boxes: Iterable[Box], colour: str) -> None:
        """Filled rectangles of one colour."""

    @abstractmethod
    def polygon(self, points: Sequence[Point], colour: str) -> None:
        """A filled area."""

    @abstractmethod
    def line(self, points: Sequence[Point], colour: str, width: float = 1) -> None:
        """A line through points."""

    @abstractmethod
    def text(self, at: Point, text: str, size: int, colour: str, anchor: str = "start") -> None:
        """Words on a base line; anchor: start, middle or end of it stands at the point."""

    @abstractmethod
    def content(self) -> bytes:
        """The file."""


class Svg(Canvas):
    """A vector picture in which words stay words."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self._parts = [f'<rect width="{width}" height="{height}" fill="{look.PAPER}"/>']

    def boxes(self, boxes: Iterable[Box], colour: str) -> None:
        """All of them are one path, which takes a third of the bytes."""
        path = "".join(f"M{_n(x0)} {_n(y0)}h{_n(x1 - x0)}v{_n(y1 - y0)}h{_n(x0 - x1)}z" for x0, y0, x1, y1 in boxes)
        if path:
            self._parts.append(f'<path fill="{colour}" d="{path}"/>')

    def polygon(self, points: Sequence[Point], colour: str) -> None:
        """A filled area."""
        self._parts.append(f'<polygon fill="{colour}" points="{_points(points)}"/>')

    def line(self, points: Sequence[Point], colour: str, width: float = 1) -> None:
        """A line through points."""
        self._parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="{_n(width)}" points="{_points(points)}"/>'
        )

    def text(self, at: Point, text: str, size: int, colour: str, anchor: str = "start") -> None:
        """Words on a base line; whatever they are, they are no markup."""
        words = html.escape(text.translate(_NOT_IN_XML).encode("utf-8", "replace").decode("utf-8"))
        place = f'x="{_n(at[0])}" y="{_n(at[1])}" font-size="{size}" fill="{colour}"'
        self._parts.append(f'<text {place} text-anchor="{anchor}">{words}</text>')

    def content(self) -> bytes:
        """The file."""
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{html.escape(look.FONT)}">'
        return "\n".join([head, *self._parts, "</svg>\n"]).encode("utf-8")


class Png(Canvas):
    """A picture of pixels, two for each unit."""

    fineness = _FINE

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        super().__init__(width, height)
        self._image = Image.new("RGB", (width * _FINE, height * _FINE), look.PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def boxes(self, boxes: Iterable[Box], colour: str) -> None:
        """Filled rectangles of one colour; none is thinner than a pixel."""
        for box in boxes:
            x0, y0, x1, y1 = (round(_FINE * at) for at in box)
            self._draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), fill=colour)

    def polygon(self, points: Sequence[Point], colour: str) -> None:
        """A filled area."""
        self._draw.polygon(_scaled(points), fill=colour)

    def line(self, points: Sequence[Point], colour: str, width: float = 1) -> None:
        """A line through points."""
        self._draw.line(_scaled(points), fill=colour, width=round(_FINE * width))

    def text(self, at: Point, text: str, size: int, colour: str, anchor: str = "start") -> None:
        """Words on a base line."""
        [place] = _scaled([at])
        self._draw.text(
            place, text.translate(_NOT_IN_XML), fill=colour, font=_font(_FINE * size), anchor=_ANCHORS[anchor]
        )

    def content(self) -> bytes:
        """The file."""
        buffer = io.BytesIO()
        self._image.save(buffer, "PNG", optimize=True, dpi=(96 * _FINE, 96 * _FINE))
        return buffer.getvalue()


KINDS: dict[str, type[Canvas]] = {".svg": Svg, ".png": Png}


def width(text: str, size: int) -> float:
    """How wide words are, in units; an SVG's font may differ a little."""
    return float(_font(size).getlength(text.translate(_NOT_IN_XML)))


def fitted(text: str, size: int, room: float) -> str:
    """As much of a text as fits into a width, with an ellipsis where it is cut; empty where not even three letters fit."""
    if width(text, size) <= room:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if width(text[:middle] + "…", size) <= room:
            low = middle
        else:
            high = middle - 1
    return text[:low] + "…" if low >= 3 else ""


def pale(colour: str, share: float) -> str:
    """A colour thinned with the paper's. share: of the colour."""
    mixed = (
        round(share * int(own, 16) + (1 - share) * int(paper, 16))
        for own, paper in ((colour[at : at + 2], look.PAPER[at : at + 2]) for at in (1, 3, 5))
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


@cache
def _font(size: int) -> "ImageFont | FreeTypeFont | Any":
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _scaled(points: Sequence[Point]) -> list[Point]:
    return [(_FINE * x, _FINE * y) for x, y in points]


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)


def _n(number: float) -> str:
    """A number with a hundredth of a unit, without what follows for nothing."""
    return f"{number:.2f}".rstrip("0").rstrip(".")
