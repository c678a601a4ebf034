"""Pictures of pages: Bokeh figures drawn without a browser, and the command that writes them."""

import re
from xml.etree import ElementTree

import picture
import pytest
from browser import HOSTILE
from PIL import Image

from neuronprof.cli import main
from neuronprof.view import canvas, still, tracks

SVG = "{http://www.w3.org/2000/svg}"


def drawn(figure, width=1200):
    """A figure as the elements of an SVG."""
    plot = still.Plot(figure, width, 0)
    drawing = canvas.Svg(width, round(plot.bottom))
    plot.draw(drawing, lambda value, _step, _largest: f"{value:g}", lambda value, _step, _largest: f"{value:g}")
    return ElementTree.fromstring(drawing.content())


def test_marks_stand_where_a_browser_would_draw_them():
    from bokeh.plotting import figure

    # 10 across 1008 units from 96 on, 4 up 100 units, the lower end at 134.
    plot = figure(x_range=(0, 10), y_range=(0, 4), height=100)
    plot.quad(left=[2], right=[4], bottom=0, top=[1], fill_color=tracks.BLUE, line_color=None)
    plot.line([0, 10], [4, 0], line_color=tracks.GREEN, line_dash="dashed")
    svg = drawn(plot)
    [box] = [part.get("d") for part in svg.iter(f"{SVG}path") if part.get("fill") == tracks.BLUE]
    assert box == "M297.6 109h201.6v25h-201.6z"
    dashes = [part.get("points") for part in svg.iter(f"{SVG}polyline") if part.get("stroke") == tracks.GREEN]
    assert dashes[0].startswith("96,34 ")
    assert len(dashes) > 50
    assert {"0", "2", "4", "10"} <= {part.text for part in svg.iter(f"{SVG}text")}


def test_logarithmic_axes_and_colours_of_values():
    from bokeh.models import LinearColorMapper
    from bokeh.plotting import figure

    plot = figure(x_axis_type="log", x_range=(1, 100), y_range=(0, 2), height=100)
    plot.scatter([10], [1], size=20, fill_color=tracks.BLUE, line_color=tracks.BLUE)
    svg = drawn(plot)
    [mark] = [part.get("points") for part in svg.iter(f"{SVG}polygon")]
    assert mark.startswith("610,84 ")  # the middle is at 600, 84
    heat = figure(x_range=(0, 2), y_range=(0, 1), height=100)
    mapper = LinearColorMapper(palette=["#000000", "#ff0000"], low=0, high=1)
    heat.image([[[0.0, float("nan")]]], x=0, y=0, dw=2, dh=1, color_mapper=mapper)
    colours = [part.get("fill") for part in drawn(heat).iter(f"{SVG}path")]
    assert colours == ["#000000"]  # nothing is drawn for what is not known


@pytest.fixture
def pipeline(tmp_path):
    """Two stages that pass a micro-batch, with HBM levels and what each rank did."""
    about = {"f": {"phase": "forward", "op": 0, "flops": 100, "bytes": 10, "dtype": "bfloat16"}, "b": {"phase": "backward"},
             "S": {"replica_group": "pp:0>1", "bytes": 64, "collective": 1}}  # fmt: skip
    events = picture.rows("tensor f..b\n cc .S\n rank 1\n tensor .fb\n cc ..S", about, scale=100)
    events += picture.levels("5999", "weights", scale=100)
    events = [{**event, "id": number} for number, event in enumerate(events)]
    path = tmp_path / "t.parquet"
    machine = {"ranks_per_chip": 1, "rank": {"peak_flops": {"bf16": 1e12}, "hbm_bandwidth": 1e10, "hbm_capacity": 100}}
    picture.write(path, events, [picture.segment(0, 400)], {"op": [0], "op_name": [HOSTILE]}, machine=machine, world_size=2,
                  pipeline={"count": 2, "stride": 1}, script=HOSTILE)  # fmt: skip
    return path


@pytest.mark.parametrize("name", ["memory", "schedule"])
def test_the_command_writes_a_page_as_a_picture(pipeline, tmp_path, capsys, name):
    output = tmp_path / f"{name}.svg"
    assert main(["view", str(pipeline), "-o", str(output), "--page", name]) == 0
    assert capsys.readouterr().out == f"wrote {output}\n"
    words = [part.text for part in ElementTree.parse(output).getroot().iter(f"{SVG}text")]
    assert words[0].startswith(HOSTILE[:40])
    assert {"memory": "weights", "schedule": "bubble"}[name] in words
    assert main(["view", str(pipeline), "-o", str(tmp_path / "t.png"), "--page", name]) == 0
    with Image.open(tmp_path / "t.png") as image:
        assert image.width == 2400


def test_what_a_page_cannot_show_is_one_sentence(pipeline, tmp_path, capsys):
    def refused(*arguments):
        assert main(["view", str(pipeline), *arguments]) == 2
        return capsys.readouterr().err

    assert "--page chooses what a picture is of" in refused("--page", "memory")
    assert "are for a picture of the timeline" in refused(
        "--page", "memory", "-o", str(tmp_path / "t.svg"), "--rank", "0"
    )
    assert re.search(
        "has nothing to show on the page 'ranks'", refused("--page", "ranks", "-o", str(tmp_path / "t.svg"))
    )
    assert not (tmp_path / "t.svg").exists()
