"""The page in a real browser: what is drawn, how it moves, what it says, and that nothing in a trace becomes code."""

import io
import itertools
import re
import time
from pathlib import Path

import picture
import pytest
import synthetic_trace
from browser import HOSTILE, drawn, hover, limits, window

from neuronprof.trace.reader import open_trace
from neuronprof.view import page as pages

pytestmark = pytest.mark.browser

TENSOR_ROW = 2  # rows from the top: step, phase, tensor


@pytest.fixture
def show(open_tab, tmp_path):
    """Opens a page, or the page of a trace, waits for its first picture, and fails if the page complained."""

    def make(shown, width=1280, height=720, scheme="light"):
        output = shown if isinstance(shown, Path) else pages.write(shown, tmp_path / "page.html")
        return open_tab(output.as_uri(), viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)

    return make


ABOUT = {
    "a": {
        "op": 0,
        "op_name": "aten.mm",
        "layer": "net.up",
        "phase": "forward",
        "source": "net.py:7",
        "flops": 6000,
        "dtype": "bfloat16",
    },
    "b": {
        "op": 1,
        "op_name": "aten.relu",
        "layer": "net",
        "phase": "backward",
        "bytes": 2048,
        "wait_ns": 30,
        "wait_for": "hbm",
    },
}
OPERATORS = {
    "op": [0, 1],
    "op_name": ["aten.mm", "aten.relu"],
    "shapes": ["(2, 3) x (3, 4) -> (2, 4)", "(2, 4) -> (2, 4)"],
}
SMALL = """
    tensor ..aaaa....aaaa......
    vector ......bb............
    dma    aa.....bbb..........
    cc     ......~~CCCC........
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The page of the picture above at 100 ns a character, with HBM levels."""
    folder = tmp_path_factory.mktemp("small")
    events = picture.rows(SMALL, ABOUT, scale=100) + picture.levels("55559999555500000000", "weights", scale=100)
    path = picture.write(folder / "t.parquet", events, [picture.segment(0, 2000)], OPERATORS, script="train.py")
    return pages.write(open_trace(path), folder / "page.html")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The page of two steps of a transformer, 40,000 events."""
    folder = tmp_path_factory.mktemp("large")
    return pages.write(open_trace(synthetic_trace.write(folder / "t.parquet", 40_000)), folder / "page.html")


def test_every_event_of_a_small_trace_is_drawn_at_its_place(show, small):
    tab = show(small)
    # Rows: 0 step, 1 phase, 2 tensor, 3 vector, 4 DMA, 5 collectives. A wide event ends a pixel early.
    events = sorted((row, round(left)) for left, _, row, event in tab.evaluate("() => rectangles()") if event >= 0)
    assert events == [(0, 0), (1, 200), (1, 600), (1, 1000), (2, 200), (2, 1000), (3, 600), (4, 0), (4, 700), (5, 800)]
    labels = tab.evaluate("() => Object.values(timeline().lanes.left[0].major_label_overrides instanceof Map"
                          " ? Object.fromEntries(timeline().lanes.left[0].major_label_overrides) : {})")  # fmt: skip
    assert sorted(labels) == ["Collectives", "DMA weights", "Phase", "Step", "Tensor", "Vector"]


def test_hover_tells_everything_about_an_event(show, small):
    tab = show(small)
    text = hover(tab, 400, 2).split("\n")
    assert [line.strip() for line in text if line.strip()] == [
        "mm · net.up",
        "Instruction", "Operator", "Layer", "Shapes", "Type", "Source", "Phase", "Start", "Duration", "FLOPs", "Of peak",
        "MATMUL", "aten.mm", "net.up", "(2, 3) x (3, 4) -> (2, 4)", "bfloat16", "net.py:7", "forward, step 0", "200 ns", "400 ns",
        # 6000 FLOP in 400 ns are 15 GFLOP/s, of a peak of 1 TFLOP/s.
        "6 kFLOP  (15 GFLOP/s)", "1.5 %",
    ]  # fmt: skip
    text = hover(tab, 850, 4)
    assert "2 KiB  (6.83 GB/s)" in text  # 2048 B in 300 ns
    assert "30 ns for hbm" in text
    assert "200 ns for peer" in hover(tab, 1000, 5)


def test_a_click_tells_why_an_event_took_so_long(show, small):
    tab = show(small)
    tab.mouse.click(*tab.evaluate("() => spot(400, 2)"))
    tab.locator("#why pre").get_by_text(re.compile("It took 400 ns.\\s+Measured, not computed")).wait_for()


def test_hover_on_quantities(show, small):
    tab = show(small)
    assert "9 B" in hover(tab, 600, 0, "held")
    # 6000 FLOP in 400 ns, of a peak of 1 TFLOP/s.
    assert "1.5 %  (15 GFLOP/s)" in hover(tab, 400, 0, "mfu")


def test_sbuf_and_psum_have_tracks_with_their_limits(show, tmp_path):
    levels = [("4444....", "resident", "sbuf"), (".5551...", "tiles", "sbuf"), ("..33....", "partial_sums", "psum")]
    events = picture.rows("tensor aaaaaaaa", scale=100)
    events += [row for drawn, name, engine in levels for row in picture.levels(drawn, name, 100, 0, engine)]
    machine = {"rank": picture.MACHINE | {"sbuf_capacity": 10, "psum_capacity": 1000}}
    tab = show(open_trace(picture.write(tmp_path / "t.parquet", events, [picture.segment(0, 800)], machine=machine)))
    shown = "() => timeline().state.figures().map(({name, left}) => [name, left[0].axis_label])"
    assert [name for name, _ in tab.evaluate(shown)] == ["lanes", "sbuf", "psum"]
    text = hover(tab, 250, 0, "sbuf")
    assert [line.strip() for line in text.split("\n") if line.strip()] == [
        "SBUF in use", "tiles", "resident", "total", "5 B", "4 B", "9 B",
    ]  # fmt: skip
    # SBUF is drawn to its capacity; PSUM, of which next to nothing is used, to its peak.
    tops = "(name) => timeline().state.figures().find((figure) => figure.name == name).left[0].ticker.ticks.at(-1)"
    assert [tab.evaluate(tops, name) for name in ("sbuf", "psum")] == [10, 3]


def test_zoom_and_pan_move_only_along_time(show, large):
    tab = show(large)
    heights = "() => [timeline().lanes.y_range.start, timeline().lanes.y_range.end]"
    low, high = limits(tab)
    before, rows = tab.evaluate("() => rectangles()"), tab.evaluate(heights)
    assert any(event < 0 for *_, event in before)  # merged bars
    tab.mouse.move(*tab.evaluate(f"() => spot({(low + high) / 2}, 2)"))
    for _ in range(14):
        tab.mouse.wheel(0, -240)
    drawn(tab)
    start, end = limits(tab)
    assert end - start < (high - low) / 20
    after = [r for r in tab.evaluate("() => rectangles()") if start <= r[0] <= end]
    assert after
    assert all(event >= 0 for *_, event in after)  # now single events
    assert tab.evaluate("() => timeline().words.text.length") > 5
    tab.mouse.down()
    tab.mouse.move(
        *tab.evaluate(f"() => {{ const [x, y] = spot({(low + high) / 2}, 2); return [x - 200, y + 40] }}"), steps=8
    )
    tab.mouse.up()
    drawn(tab)
    moved = limits(tab)
    pixel = (end - start) / tab.evaluate("() => timeline().lanes.inner_width")
    assert moved[0] - start == pytest.approx(200 * pixel, rel=0.02)
    assert moved[1] - moved[0] == pytest.approx(end - start)
    assert tab.evaluate(heights) == rows


def test_what_is_drawn_covers_all_events_at_every_zoom(show, large):
    # Inside a window that holds no edge of an event, bars count their events: with lone ones they are all there are.
    tab = show(large)
    low, high = limits(tab)
    engines = open_trace(large.parent / "t.parquet").columns(["engine"]).to_pandas()["engine"]
    shown = int((engines != "hbm").sum())
    counts = set()
    for width in (1, 4, 16):
        seen = {}
        edges = [low + (high - low) * n / width for n in range(width + 1)]
        for start, end in itertools.pairwise(edges):
            window(tab, start, end)
            found = tab.evaluate(
                "() => { const {drawn, state} = timeline(); return Array.from(drawn.row, (row, i) =>"
                " [drawn.left[i], row, Math.round(-drawn.bottom[i] - 0.88),"
                " row < 0 ? state.scenes[0].seen.columns.bar_count[-1 - row] : 1]) }"
            )
            seen |= {row: n for _, row, place, n in found if place >= TENSOR_ROW or row < 0}
        level = tab.evaluate("() => Math.floor(Math.log2(timeline().state.drawn.pixel))")
        counts.add((level, sum(seen.values())))
    assert len({level for level, _ in counts}) == 3
    bands = tab.evaluate(
        "() => timeline().state.scenes[0].seen.lanes.filter((l) => l.row[0] < 2).reduce((n, l) => n + l.to - l.from, 0)"
    )
    assert all(shown <= total <= shown + bands for _, total in counts)


def test_a_lone_event_of_50_ns_in_an_idle_second_is_visible(show, trace):
    import numpy as np
    from PIL import Image

    lone = {
        "engine": "tensor",
        "kind": "compute",
        "name": "MATMUL",
        "start_ts": 437_000_000,
        "duration_ns": 50,
        "phase": "optimizer",
    }
    tab = show(trace([lone], [picture.segment(0, 10**9)]))
    x, y = tab.evaluate(f"() => spot(437000000, {TENSOR_ROW})")
    shot = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("RGB")).astype(int)
    around = shot[round(y), round(x) - 3 : round(x) + 4]
    green = np.array([0x00, 0x9E, 0x73])  # the optimizer's colour
    assert (np.abs(around - green).sum(axis=1) < 120).any()
    assert (shot[round(y), round(x) + 20 : round(x) + 60] > 220).all()  # idle
    assert "50 ns" in hover(tab, 437_000_000, TENSOR_ROW)


def test_colours_change_with_the_choice_and_the_legend_with_them(show, small):
    tab = show(small)
    legends, colours = {}, {}
    for choice, label in (
        ("phase", "Colour: phase"),
        ("opcode", "Colour: operator kind"),
        ("engine", "Colour: engine"),
    ):
        tab.locator("select[name=colour]").select_option(label=label)
        drawn(tab)
        legends[choice] = tab.evaluate(
            "() => Bokeh.documents[0].get_model_by_name('legend').renderers[0].data_source.data.text"
        )
        colours[choice] = tab.evaluate("() => Array.from(timeline().drawn.colour)")
    assert legends == {
        "phase": ["forward", "backward"],
        "opcode": ["AllReduce", "DMA_LOAD", "MATMUL", "TENSOR_TENSOR"],
        "engine": ["Tensor", "Vector", "DMA", "Collectives"],
    }
    assert len({tuple(c) for c in colours.values()}) == 3


def test_ranks_can_be_chosen(show, trace):
    drawing = "tensor aaaa\n rank 1\n tensor ....bb"
    tab = show(trace(picture.rows(drawing, scale=100), [picture.segment(0, 1000)]))
    assert [r[:1] for r in tab.evaluate("() => rectangles()") if r[2] == TENSOR_ROW - 1] == [[0]]
    tab.locator("select[name=rank]").select_option(label="Rank 1")
    drawn(tab)
    assert [r[:1] for r in tab.evaluate("() => rectangles()") if r[2] == TENSOR_ROW - 1] == [[400]]


def test_keys_move_the_window(show, large):
    tab = show(large)
    low, high = limits(tab)
    tab.keyboard.press("w")
    tab.keyboard.press("w")
    drawn(tab)
    start, end = limits(tab)
    assert end - start == pytest.approx(0.49 * (high - low))
    tab.keyboard.press("d")
    drawn(tab)
    assert limits(tab)[0] - start == pytest.approx(0.2 * (end - start))
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("0")
    drawn(tab)
    assert limits(tab) == [low, high]


def test_hostile_names_stay_text(show, tmp_path):
    about = {
        "op": 0,
        "op_name": HOSTILE,
        "layer": HOSTILE,
        "source": HOSTILE,
        "phase": HOSTILE,
        "dtype": HOSTILE,
        "name": HOSTILE,
    }
    events = picture.rows(
        "tensor aaaaaaaa\n cc bbbb",
        {"a": about, "b": {**about, "replica_group": HOSTILE, "algorithm": HOSTILE}},
        scale=100,
    )
    events += [{**events[0], "engine": HOSTILE}, *picture.levels("55555555", HOSTILE, scale=100)]
    operators = {"op": [0], "op_name": [HOSTILE], "layer": [HOSTILE], "shapes": [HOSTILE]}
    path = picture.write(
        tmp_path / "t.parquet", events, [picture.segment(0, 800)], operators, script=HOSTILE, notes={HOSTILE: 1}
    )
    tab = show(open_trace(path))
    assert HOSTILE in tab.locator("h1").inner_text()
    text = hover(tab, 400, TENSOR_ROW)
    assert "<img src=x onerror" in text
    assert "<img src=x onerror" in hover(tab, 400, 0, "held")
    for choice in ("Colour: operator kind", "Colour: engine", "Colour: phase"):
        tab.locator("select[name=colour]").select_option(label=choice)
        drawn(tab)
    for name in ("Summary", "Communication", "Memory", "Roofline", "Ranks", "Operators"):
        tab.locator("nav").get_by_text(name, exact=True).click()
        tab.wait_for_timeout(100)
    assert any("<img src=x onerror" in text for text in tab.locator(".slick-cell").all_inner_texts())
    assert tab.evaluate("() => window.hacked") is None
    assert tab.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080)])
def test_the_page_fits_its_window(show, large, size):
    tab = show(large, *size)
    assert tab.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    # The frames of all plots over time line up.
    frames = tab.evaluate("() => ['overview', 'lanes', 'hbm', 'neuronlink', 'held'].map(frame)")
    assert len({tuple(frame) for frame in frames}) == 1


def test_dark_figures_where_dark_is_preferred(show, small):
    background = "() => timeline().lanes.background_fill_color"
    assert show(small).evaluate(background) == "#ffffff"
    assert show(small, scheme="dark").evaluate(background) == "#12161d"


def test_a_trace_of_one_event_and_one_without_segments(show, trace):
    tab = show(trace(picture.rows("dma:9 a")))
    assert sorted(r[2] for r in tab.evaluate("() => rectangles()")) == [
        0,
        1,
    ]  # step 0, from the event itself, and the transfer


def test_a_trace_without_events_says_so(chromium, trace, tmp_path):
    output = pages.write(trace([]), tmp_path / "empty.html")
    tab = chromium.new_page()
    tab.goto(output.as_uri())
    tab.get_by_text("This trace has no events.").wait_for()
    tab.close()


def test_a_million_events_open_within_five_seconds(show, tmp_path):
    trace = open_trace(synthetic_trace.write(tmp_path / "t.parquet", 1_000_000))
    assert trace.num_events > 990_000
    tab = show(trace)
    assert (tmp_path / "page.html").stat().st_size < 15e6
    began = time.perf_counter()
    tab.reload()
    drawn(tab)
    assert time.perf_counter() - began < 5
    low, high = limits(tab)
    assert tab.evaluate("() => rectangles().length") < 20_000
    slowest = 0
    for zoom in (0.5, 0.1, 0.01, 0.001):
        began = time.perf_counter()
        window(tab, low + 0.3 * (high - low), low + (0.3 + 0.7 * zoom) * (high - low))
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 1
