"""The timeline as a picture: what stands where, and that a trace's words stay words."""

import re
from xml.etree import ElementTree

import picture
import pytest
from browser import HOSTILE
from PIL import Image

from neuronprof.cli import main
from neuronprof.errors import NeuronprofError
from neuronprof.trace.reader import open_trace
from neuronprof.view import picture as drawing
from neuronprof.view import tracks

SVG = "{http://www.w3.org/2000/svg}"
BOX = re.compile(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z")


@pytest.fixture
def small(trace):
    # 10 ns on 1406 pixels, from 178 to 1584: 140.6 a nanosecond.
    phases = {"a": {"op_name": "mm", "phase": "forward"}, "b": {"op_name": HOSTILE, "phase": "backward"}}
    return trace(picture.rows("tensor aaaa....bb\n vector ....bbbb", phases), [picture.segment(0, 10)], script=HOSTILE)


def boxes(svg, colour):
    """Left, top, width, height of the rectangles of a colour, below the legend."""
    paths = [part.get("d") for part in svg.iter(f"{SVG}path") if part.get("fill") == colour]
    found = [tuple(map(float, found)) for path in paths for found in BOX.findall(path)]
    return [box for box in found if box[1] > 70]


def test_events_stand_where_their_times_are_and_words_are_no_markup(small, tmp_path):
    svg = ElementTree.parse(drawing.write([small], tmp_path / "t.svg")).getroot()
    # Rows are 22 high below 96: steps, phases, tensor, vector; events leave 2.5 free on each side, wide ones end a unit early.
    assert boxes(svg, tracks.BLUE) == [(178, 120.5, 561.4, 17), (178, 142.5, 561.4, 17)]
    assert boxes(svg, tracks.VERMILLION) == [
        (740.4, 120.5, 842.6, 17), (1302.8, 142.5, 280.2, 17), (740.4, 164.5, 561.4, 17),
    ]  # fmt: skip
    words = [part.text for part in svg.iter(f"{SVG}text")]
    assert {"Tensor", "Vector", "0 ns", "10 ns", "mm", "forward", "backward"} <= set(words)
    assert words[0].startswith(HOSTILE[:40])
    drawn = ("svg", "rect", "path", "polyline", "polygon", "text")
    assert {part.tag for part in svg.iter()} <= {f"{SVG}{name}" for name in drawn}


def test_a_stretch_of_time_is_drawn_alone(small, tmp_path):
    svg = ElementTree.parse(drawing.write([small], tmp_path / "t.svg", extent=(4, None))).getroot()
    assert boxes(svg, tracks.BLUE) == []
    assert boxes(svg, tracks.VERMILLION)[-1] == (178, 164.5, round(4 * 1406 / 6 - 1, 2), 17)
    with pytest.raises(NeuronprofError, match="nothing between --from and --to: the trace lasts from 0 ns to 10 ns"):
        drawing.write([small], tmp_path / "t.svg", extent=(20, 30))


def test_a_short_event_in_an_idle_second_has_a_pixel(trace, tmp_path):
    lone = {**picture.rows("tensor a", {"a": {"phase": "forward"}})[0], "start_ts": 500_000_000, "duration_ns": 50}
    path = drawing.write([trace([lone], [picture.segment(0, 10**9)])], tmp_path / "t.png")
    image = Image.open(path)
    assert image.width == 3200
    blue = tuple(int(tracks.BLUE[at : at + 2], 16) for at in (1, 3, 5))
    row = [image.getpixel((x, 2 * 150)) for x in range(image.width)]  # the middle of the third row
    assert [x for x, colour in enumerate(row) if colour == blue] == [2 * (178 + 1406 // 2)]


def test_the_command_writes_pictures_and_says_what_it_cannot(small, tmp_path, capsys):
    assert main(["view", str(small.path), "-o", str(tmp_path / "t.png")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 't.png'}\n"
    assert main(["view", str(small.path), "-o", str(tmp_path / "t.jpg")]) == 2
    assert "end it in .html or .htm or .svg or .png" in capsys.readouterr().err
    assert main(["view", str(small.path), "--from", "1ms"]) == 2
    assert "--from and --to choose what a picture shows" in capsys.readouterr().err


def test_a_trace_without_events_is_a_picture_without_rows(tmp_path):
    empty = open_trace(picture.write(tmp_path / "t.parquet", []))
    svg = ElementTree.parse(drawing.write([empty], tmp_path / "t.svg")).getroot()
    assert [part.text for part in svg.iter(f"{SVG}text")][1].startswith("Rank 0")
