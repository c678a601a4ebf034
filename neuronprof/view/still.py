"""A Bokeh figure of the pages drawn on a canvas, without a browser: the glyphs, axes and legends that these figures have."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.view import canvas, look
from neuronprof.view.canvas import Canvas

if TYPE_CHECKING:
    from bokeh.models import ColorMapper
    from bokeh.plotting import figure as Figure

Format = Callable[[float, float, float], str]  # of a tick: its value, the distance between ticks, the largest one

_LEFT, _RIGHT, _ABOVE, _BELOW = 96, 96, 34, 46  # around a figure's frame
_CORNERS = 20  # of a round mark
_MOST_TICKS = 8
_FREE = 0.05  # around what is drawn, where the figure sets no range
_KEY = 18  # wide is what stands before a name in a legend
_SLACK = 1.06  # of a text's width, which is measured in another size
_NARROWEST = 0.5  # units of what cuts something else
_HATCHED = 0.25  # of a hatched place's colour
_SHADES = 6  # of alpha that are told apart


class Plot:
    """A figure and where it stands. figure: one of the pages'; frame: left, top, right, bottom of what is between its axes."""

    def __init__(self, figure: "Figure", width: int, top: float) -> None:
        self.figure, self.top = figure, top
        self.frame = (float(_LEFT), top + _ABOVE, float(width - _RIGHT), top + _ABOVE + figure.height)
        self.bottom = self.frame[3] + _BELOW
        self._x = _Scale(figure.x_scale, _extent(figure, figure.x_range, _ACROSS), (self.frame[0], self.frame[2]))
        self._y = _Scale(figure.y_scale, _extent(figure, figure.y_range, _UP), (self.frame[3], self.frame[1]),
                         binary=getattr(figure.yaxis[0].ticker, "base", 10) == 1024)  # fmt: skip

    def draw(self, drawing: Canvas, across: Format, up: Format, scale: Format | None = None) -> None:
        """The figure with its axes; across, up, scale: how ticks of its axes and of its scale of colours are written."""
        if self.figure.xaxis[0].visible:
            self._axes(drawing, across, up)
        for renderer in self.figure.renderers:
            glyph = renderer.glyph
            kind = type(glyph).__name__
            _GLYPHS[kind](self, drawing, glyph, renderer.data_source.data)
        for renderer in self.figure.renderers:
            self._numbers(drawing, renderer.data_source.data)
        self._legend(drawing)
        for bar in self.figure.right:
            if scale and hasattr(bar, "color_mapper"):
                self._colours(drawing, bar.color_mapper, scale)

    def x(self, values: Any) -> NDArray[np.float64]:
        """Where values stand, inside the frame."""
        return self._x.at(values)

    def y(self, values: Any) -> NDArray[np.float64]:
        """Where values stand, inside the frame."""
        return self._y.at(values)

    def _axes(self, drawing: Canvas, across: Format, up: Format) -> None:
        left, top, right, bottom = self.frame
        for tick, label in self._x.ticks(across):
            drawing.line([(tick, top), (tick, bottom)], look.LINE)
            drawing.text((tick, bottom + 16), label, 11, look.FAINT, "middle")
        for tick, label in self._y.ticks(up):
            drawing.line([(left, tick), (right, tick)], look.LINE)
            drawing.text((left - 8, tick + 4), label, 11, look.FAINT, "end")
        drawing.text(((left + right) / 2, bottom + 34), self.figure.xaxis[0].axis_label or "", 12, look.INK, "middle")
        drawing.text((8, top - 12), self.figure.yaxis[0].axis_label or "", 12, look.INK)

    def _legend(self, drawing: Canvas) -> None:
        """In a line above the frame, from the right edge on."""
        x = self.frame[2]
        for item in reversed(self.figure.legend[0].items if self.figure.legend else []):
            glyph = item.renderers[0].glyph
            name, colour = str(_plain(item.label)), _colour(glyph)
            drawing.text((x, self.frame[1] - 12), name, 11, look.INK, "end")
            x -= _SLACK * canvas.width(name, 11) + _KEY + 5
            if hasattr(glyph, "fill_color"):
                drawing.boxes([(x + 8, self.frame[1] - 21, x + _KEY, self.frame[1] - 11)], colour)
            else:
                _dashed(drawing, [(x, self.frame[1] - 16), (x + _KEY, self.frame[1] - 16)], glyph)
            x -= 10

    def _numbers(self, drawing: Canvas, data: Mapping[str, Any]) -> None:
        """The numbers of passes, where they have room, over everything that cuts them."""
        if not {"number", "ink"} <= data.keys():
            return
        left, right = self.x(data["start_ts"]), self.x(data["end_ts"])
        middle = (self.y(data["top"]) + self.y(data["bottom"])) / 2
        for x0, x1, y, text, ink, colour in zip(
            left, right, middle, data["number"], data["ink"], data["colour"], strict=True
        ):
            half = _SLACK * canvas.width(text, 11) / 2
            if text and 2 * half < x1 - x0 - 3:
                x = (x0 + x1) / 2
                drawing.boxes([(x - half - 1, y - 7, x + half + 1, y + 7)], colour)
                drawing.text((x, y + 4), text, 11, ink, "middle")

    def _colours(self, drawing: Canvas, mapper: "ColorMapper", written: Format) -> None:
        """What the colours of a map mean, right of it."""
        _, top, right, bottom = self.frame
        shades = len(mapper.palette)
        edges = np.linspace(bottom, top, shades + 1)
        left, wide = np.full(shades, right + 12), np.full(shades, right + 22)
        _boxes(drawing, [left, wide, edges[:-1], edges[1:]], mapper.palette, 1)
        for share in (0, 0.5, 1):
            logarithmic = type(mapper).__name__ == "LogColorMapper"
            low, high = float(mapper.low), float(mapper.high)
            value = low * (high / low) ** share if logarithmic else low + share * (high - low)
            drawing.text((right + 28, bottom - share * (bottom - top) + 4), written(value, 0, high), 11, look.FAINT)


class _Scale:
    """Numbers of an axis to places on the canvas."""

    def __init__(
        self, scale: Any, extent: tuple[float, float], places: tuple[float, float], binary: bool = False
    ) -> None:
        self._log, self._binary = type(scale).__name__ == "LogScale", binary
        self._low, self._high = map(math.log10, extent) if self._log else extent
        self._start, self._end = places

    def at(self, values: Any) -> NDArray[np.float64]:
        numbers = np.asarray(values, float)
        numbers = np.log10(numbers) if self._log else numbers
        share = (numbers - self._low) / ((self._high - self._low) or 1)
        return self._start + np.clip(share, 0, 1) * (self._end - self._start)

    def ticks(self, written: Format) -> list[tuple[float, str]]:
        low, high = sorted((self._low, self._high))
        step = (
            max(1.0, math.ceil((high - low) / _MOST_TICKS))
            if self._log
            else _nice((high - low) / _MOST_TICKS, self._binary)
        )
        places = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
        values = [10.0**place if self._log else place for place in places]
        labels = [written(value, step, max(map(abs, values))) for value in values]
        return [(float(self.at(value)), label) for value, label in zip(values, labels, strict=True) if label]


def _nice(least: float, binary: bool) -> float:
    """The next larger of 1, 2, 5, 10, ..., or power of two."""
    if binary:
        return 2.0 ** math.ceil(math.log2(least or 1))
    power = 10.0 ** math.floor(math.log10(least or 1))
    return next((power * n for n in (1, 2, 5) if power * n >= least), power * 10)


_ACROSS, _UP = ("x", "left", "right", "x0", "x1"), ("y", "top", "bottom", "y0", "y1", "y2")


def _extent(figure: "Figure", given: Any, names: Sequence[str]) -> tuple[float, float]:
    """What an axis spans: as the figure says, or what is drawn with a little room."""
    found = [given.start, given.end]
    known = [end if isinstance(end, int | float) and not math.isnan(end) else None for end in found]
    if None in known:
        drawn = [values for renderer in figure.renderers for values in _drawn(renderer, names)]
        whole = np.concatenate(drawn) if drawn else np.zeros(1)
        low, high = float(np.nanmin(whole)), float(np.nanmax(whole))
        logarithmic = type(figure.x_scale if "x0" in names else figure.y_scale).__name__ == "LogScale"
        free = (high / low) ** _FREE if logarithmic else _FREE * ((high - low) or 1)
        around = (low / free, high * free) if logarithmic else (low - free, high + free)
        around = around[::-1] if getattr(given, "flipped", False) else around
        known = [end if end is not None else place for end, place in zip(known, around, strict=True)]
    low, high = (float(end) for end in known if end is not None)
    return low, high


def _drawn(renderer: Any, names: Sequence[str]) -> list[NDArray[np.float64]]:
    glyph, data = renderer.glyph, renderer.data_source.data
    specs = [getattr(glyph, name) for name in names if hasattr(glyph, name)]
    return [np.atleast_1d(np.asarray(_values(spec, data), float)) for spec in specs]


def _values(spec: Any, data: Mapping[str, Any]) -> Any:
    """What a property of a glyph is for each of its marks, or for all."""
    if isinstance(spec, str) or hasattr(spec, "field"):
        return np.asarray(data[_field(spec)])
    if hasattr(spec, "expr"):
        return np.sum([np.asarray(data[name], float) for name in spec.expr.fields], axis=0) if spec.expr.fields else 0.0
    return _plain(spec)


def _field(spec: Any) -> str:
    return str(spec if isinstance(spec, str) else spec.field)


def _plain(spec: Any) -> Any:
    return spec.value if hasattr(spec, "value") else spec


def _boxes(drawing: Canvas, edges: Sequence[Any], colours: Any, alpha: Any) -> None:
    """Rectangles, those of one colour and alpha together."""
    edges = np.broadcast_arrays(*(np.atleast_1d(np.asarray(edge, float)) for edge in edges))
    left, right = np.minimum(edges[0], edges[1]), np.maximum(edges[0], edges[1])
    top, bottom = np.minimum(edges[2], edges[3]), np.maximum(edges[2], edges[3])
    shade = np.broadcast_to(np.round(np.asarray(alpha, float) * _SHADES) / _SHADES, left.shape)
    colour = np.broadcast_to(np.asarray(colours, object), left.shape)
    groups: dict[tuple[str, float], list[canvas.Box]] = {}
    for box in zip(left, top, right, bottom, colour, shade, strict=True):
        if box[4]:
            groups.setdefault((str(box[4]), float(box[5])), []).append(
                (box[0], box[1], max(box[2], box[0] + 0.5), box[3])
            )
    for (name, share), boxes in groups.items():
        drawing.boxes(boxes, canvas.pale(name, share))


def _quad(plot: Plot, drawing: Canvas, glyph: Any, data: Mapping[str, Any]) -> None:
    edges = [_values(getattr(glyph, name), data) for name in ("left", "right", "top", "bottom")]
    places = [*map(plot.x, edges[:2]), *map(plot.y, edges[2:])]
    line = _plain(glyph.line_color)
    if _plain(glyph.fill_color) is None:
        for x0, x1, y0, y1 in zip(*np.broadcast_arrays(*map(np.atleast_1d, places)), strict=True):
            drawing.line([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], line)
        return
    if line:  # a seam, half a unit on each side
        places = [places[0] + 0.5, np.maximum(places[1] - 0.5, places[0] + 0.5), *places[2:]]
    seen = [np.broadcast_to(place, np.shape(places[0])) for place in (*places, _values(glyph.fill_alpha, data))]
    wide = seen[1] - seen[0] >= (0 if line else _NARROWEST)
    _boxes(drawing, [place[wide] for place in seen[:4]], _colour(glyph), seen[4][wide])


def _colour(glyph: Any) -> str:
    """The colour of a glyph's marks; of hatched ones, what hatching looks like from afar."""
    if _plain(getattr(glyph, "hatch_pattern", None)):
        return canvas.pale(_plain(glyph.hatch_color), _HATCHED)
    return str(_plain(getattr(glyph, "fill_color", None)) or _plain(glyph.line_color))


def _rect(plot: Plot, drawing: Canvas, glyph: Any, data: Mapping[str, Any]) -> None:
    x, y = _values(glyph.x, data), _values(glyph.y, data)
    wide, high = _plain(glyph.width) / 2, _plain(glyph.height) / 2
    colours = _mapped(data[glyph.fill_color.field], glyph.fill_color.transform)
    _boxes(drawing, [plot.x(x - wide), plot.x(x + wide), plot.y(y - high), plot.y(y + high)], colours, 1)


def _image(plot: Plot, drawing: Canvas, glyph: Any, data: Mapping[str, Any]) -> None:
    values = np.asarray(data[_field(glyph.image)][0], float)
    together = math.ceil(
        values.shape[1] / (plot.frame[2] - plot.frame[0])
    )  # of cells narrower than a unit the largest value
    values = np.fmax.reduceat(values, np.arange(0, values.shape[1], together), axis=1)
    rows, columns = values.shape
    x, y = (_plain(start) + np.arange(n + 1) * _plain(size) / n
            for start, size, n in ((glyph.x, glyph.dw, columns), (glyph.y, glyph.dh, rows)))  # fmt: skip
    left, right = (np.tile(edges, rows) for edges in (plot.x(x[:-1]), plot.x(x[1:])))
    top, bottom = (np.repeat(edges, columns) for edges in (plot.y(y[:-1]), plot.y(y[1:])))
    _boxes(drawing, [left, right, top, bottom], _mapped(values.ravel(), glyph.color_mapper), 1)


def _mapped(values: Any, mapper: "ColorMapper") -> NDArray[Any]:
    """The colours of values; None for NaN."""
    numbers, low, high = np.asarray(values, float), float(mapper.low), float(mapper.high)
    if type(mapper).__name__ == "LogColorMapper":
        numbers, low, high = np.log(numbers), math.log(low), math.log(high)
    palette = np.array([*mapper.palette, None], object)
    place = np.clip(np.nan_to_num((numbers - low) / ((high - low) or 1)), 0, 1) * (len(mapper.palette) - 1)
    return np.asarray(palette[np.where(np.isnan(numbers), -1, np.rint(place).astype(int))])


def _line(plot: Plot, drawing: Canvas, glyph: Any, data: Mapping[str, Any]) -> None:
    x, y = plot.x(_values(glyph.x, data)), plot.y(_values(glyph.y, data))
    _dashed(drawing, list(zip(x.tolist(), y.tolist(), strict=True)), glyph)


def _dashed(drawing: Canvas, points: Sequence[canvas.Point], glyph: Any) -> None:
    """A line; a straight one with its dashes."""
    if len(points) > 2 or not glyph.line_dash:
        drawing.line(points, glyph.line_color, glyph.line_width)
        return
    (x0, y0), (x1, y1) = points
    length, on = math.hypot(x1 - x0, y1 - y0), glyph.line_dash[0]
    for at in np.arange(0, length, on + glyph.line_dash[-1]).tolist():
        ends = [share / (length or 1) for share in (at, min(at + on, length))]
        drawing.line([(x0 + end * (x1 - x0), y0 + end * (y1 - y0)) for end in ends], glyph.line_color, glyph.line_width)


def _area(plot: Plot, drawing: Canvas, glyph: Any, data: Mapping[str, Any]) -> None:
    x = plot.x(_values(glyph.x, data))
    low, high = (np.broadcast_to(plot.y(_values(spec, data)), x.shape) for spec in (glyph.y1, glyph.y2))
    points = [*zip(x.tolist(), high.tolist(), strict=True), *zip(x[::-1].tolist(), low[::-1].tolist(), strict=True)]
    drawing.polygon(points, canvas.pale(glyph.fill_color, glyph.fill_alpha))


def _marks(plot: Plot, drawing: Canvas, glyph: Any, data: Mapping[str, Any]) -> None:
    """Round marks, the largest ones first."""
    colour = canvas.pale(_plain(glyph.fill_color), _plain(glyph.fill_alpha))
    x, y, size = (np.broadcast_to(values, len(data[_field(glyph.x)])) for values in (
        plot.x(_values(glyph.x, data)), plot.y(_values(glyph.y, data)), np.asarray(_values(glyph.size, data), float)))  # fmt: skip
    turn = 2 * np.pi * np.arange(_CORNERS + 1) / _CORNERS
    for at in np.argsort(-size):
        points = list(zip(x[at] + size[at] / 2 * np.cos(turn), y[at] + size[at] / 2 * np.sin(turn), strict=True))
        drawing.polygon(points, colour)
        drawing.line(points, _plain(glyph.line_color))


def _segments(plot: Plot, drawing: Canvas, glyph: Any, data: Mapping[str, Any]) -> None:
    ends = [
        scale(_values(getattr(glyph, name), data))
        for name, scale in (("x0", plot.x), ("y0", plot.y), ("x1", plot.x), ("y1", plot.y))
    ]
    for x0, y0, x1, y1 in zip(*ends, strict=True):
        drawing.line([(x0, y0), (x1, y1)], _plain(glyph.line_color))


def _words(plot: Plot, drawing: Canvas, glyph: Any, data: Mapping[str, Any]) -> None:
    texts = data[_field(glyph.text)]
    if len(texts):
        for x, y, text in zip(plot.x(_values(glyph.x, data)), plot.y(_values(glyph.y, data)), texts, strict=True):
            drawing.text((x, y + 4), str(text), 11, _plain(glyph.text_color))


_GLYPHS: dict[str, Callable[[Plot, Canvas, Any, Mapping[str, Any]], None]] = {
    "Quad": _quad, "Rect": _rect, "Image": _image, "Line": _line, "VArea": _area, "Scatter": _marks, "Segment": _segments, "Text": _words,
}  # fmt: skip
