"""The page that the server sends, in a real browser: pages, ways to move, notes, hostile names, and what it says when something ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import picture
import pytest
import synthetic_trace
from browser import HOSTILE, drawn, hover, limits, window

from neuronprof.cli import main
from neuronprof.trace import schema
from neuronprof.trace.writer import TraceWriter

pytestmark = pytest.mark.browser

PAGES = ("timeline", "summary", "operators", "communication", "memory", "roofline", "ranks")
SPOKEN = (
    "button",
    "textbox",
    "searchbox",
    "combobox",
    "link",
    "checkbox",
    "image",
    "Canvas",
    "treegrid",
)  # what needs a name
SAMPLE = Path(__file__).parents[2] / "sample_traces" / "gpt.parquet"
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"  # artifacts of the run, to be looked at


class Running:
    """`neuronprof view` in a process of its own."""

    def __init__(self, cache, *arguments):
        command = [sys.executable, "-m", "neuronprof", "view", "--no-browser", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "XDG_CACHE_HOME": str(cache)}
        )
        self.address = re.match(r"(http://\S+/) shows ", self.process.stdout.readline())[1]

    def interrupt(self):
        """Ctrl-C: the exit code, and the seconds until it came."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20), time.monotonic() - began


@pytest.fixture
def view(tmp_path):
    """Starts `neuronprof view` with arguments; it is ended after the test."""
    running = []

    def start(*arguments):
        running.append(Running(tmp_path / "cache", *arguments))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.communicate()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The address of a server of two steps of a transformer on two ranks, 20,000 events each."""
    folder = tmp_path_factory.mktemp("served")
    running = Running(folder / "cache", synthetic_trace.write(folder / "t.parquet", 20_000, ranks=(0, 1)))
    yield running.address
    running.process.kill()
    running.process.communicate()


def turn_to(tab, name):
    """Opens a page and waits until something stands on it."""
    tab.locator(f"nav a[data-page={name}]").click()
    if name != "timeline":
        tab.locator(f"#sheet-{name} .bk-Column").first.wait_for()


@pytest.mark.parametrize(
    ("scheme", "width", "height"), [("light", 1280, 720), ("dark", 1920, 1080), ("light", 3840, 2160)]
)
def test_each_page_opens_and_fits_its_window(large, open_tab, scheme, width, height):
    tab = open_tab(large, viewport={"width": width, "height": height}, color_scheme=scheme)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    read = tab.context.new_cdp_session(tab)
    for name in PAGES:
        turn_to(tab, name)
        assert tab.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), name
        tab.wait_for_timeout(500)
        nodes = [node for node in read.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
        assert [
            node["role"] for node in nodes if node["role"]["value"] in SPOKEN and not node["name"]["value"]
        ] == [], name
        tab.screenshot(path=SCREENSHOTS / f"{name}-{scheme}-{width}x{height}.png")
        if name == "operators":
            assert tab.locator("#sheet-operators .slick-row").count() > 5


def test_text_grows_on_a_wide_screen(large, open_tab):
    sizes = []
    for width in (1920, 3840):
        tab = open_tab(large, viewport={"width": width, "height": 1080})
        font = "() => parseFloat(timeline().lanes.left[0].major_label_text_font_size)"
        row = "() => { const [y0, y1] = [spot(0, 0), spot(0, 1)].map(([, y]) => y); return y1 - y0 }"
        title = "() => document.querySelector('h1').getBoundingClientRect().height"
        sizes.append([tab.evaluate(what) for what in (font, row, title)])
    assert sizes[1] == pytest.approx([2 * size for size in sizes[0]], rel=0.05)
    assert "step 0" in hover(tab, 1000, 0)  # the pointer still hits what is under it


def test_an_address_opens_its_page_and_the_timeline_after_it(large, chromium):
    tab = chromium.new_page()
    tab.goto(f"{large}#page=operators")
    tab.locator("#sheet-operators .slick-row").first.wait_for()
    tab.locator("nav a[data-page=timeline]").click()
    tab.wait_for_function("() => Bokeh.documents[0].get_model_by_name('lanes').x_range.neuronprof?.drawn")
    tab.close()


def test_what_is_chosen_on_other_pages_is_in_the_address(large, open_tab):
    tab = open_tab(large)
    turn_to(tab, "operators")
    tab.locator("#tree").get_by_role("button", name="Fold all", exact=True).click()
    tab.locator("#tree").get_by_role("button", name="Phase").click()
    tab.wait_for_function("() => location.hash.includes('tree=phase%7Cup')")
    tab.locator("#tree").get_by_role("button", name="Phase").click()
    tab.wait_for_function("() => location.hash.includes('tree=phase%7Cdown')")
    same = open_tab(tab.url)
    same.locator("#tree th[aria-sort=descending]", has_text="Phase").wait_for()
    turn_to(same, "summary")
    same.wait_for_function(
        "() => location.hash.includes('page=summary') && location.hash.includes('tree=phase%7Cdown')"
    )
    tab.go_back()
    tab.locator("#tree th[aria-sort=ascending]", has_text="Phase").wait_for()


def test_ways_to_move(large, open_tab):
    tab = open_tab(large)
    low, high = limits(tab)
    tab.keyboard.press("w")
    drawn(tab)
    start, end = limits(tab)
    assert end - start == pytest.approx(0.7 * (high - low))
    tab.locator("#goto").fill("170 us")
    tab.locator("#goto").press("Enter")
    drawn(tab)
    assert sum(limits(tab)) / 2 == pytest.approx(170_000)
    tab.locator("#goto").blur()
    tab.keyboard.press("0")
    drawn(tab)
    assert limits(tab) == [low, high]


def test_the_window_in_the_overview_is_dragged(large, open_tab):
    tab = open_tab(large)
    low, high = limits(tab)
    span = high - low
    window(tab, low + 0.2 * span, low + 0.4 * span)
    left, right = tab.evaluate("() => frame('overview')")
    y = tab.evaluate("() => spot(0, 0, 'overview')[1] - 40")
    at = left + 0.3 * (right - left)
    tab.mouse.move(at, y)
    tab.mouse.down()
    tab.mouse.move(at + 0.25 * (right - left), y, steps=8)
    tab.mouse.up()
    drawn(tab)
    start, end = limits(tab)
    assert end - start == pytest.approx(0.2 * span, rel=0.02)
    assert start == pytest.approx(low + 0.45 * span, rel=0.03)


def test_the_wheel_zooms_around_the_pointer(large, open_tab):
    tab = open_tab(large)
    low, high = limits(tab)
    at = low + 0.75 * (high - low)
    tab.mouse.move(*tab.evaluate(f"() => spot({at}, 2)"))
    for _ in range(3):
        tab.mouse.wheel(0, -240)
    drawn(tab)
    start, end = limits(tab)
    assert end - start < (high - low) / 1.5
    assert (at - start) / (end - start) == pytest.approx(0.75, abs=0.01)


def test_a_drag_pans_and_nothing_is_asked_while_it_stays_near(large, open_tab):
    tab = open_tab(large)
    low, high = limits(tab)
    window(tab, low + 0.4 * (high - low), low + 0.5 * (high - low))
    start, end = limits(tab)
    asked = []
    tab.on("request", lambda request: asked.append(request.url) if "window" in request.url else None)
    (left, right), y = tab.evaluate("() => frame('lanes')"), tab.evaluate("() => spot(0, 3)[1]")
    tab.mouse.move(left + 300, y)
    tab.mouse.down()
    tab.mouse.move(left + 100, y + 30, steps=8)
    tab.mouse.up()
    drawn(tab)
    assert asked == []
    assert limits(tab)[0] - start == pytest.approx(200 * (end - start) / (right - left), rel=0.02)
    assert limits(tab)[1] - limits(tab)[0] == pytest.approx(end - start)
    # What comes in from the right was drawn beyond the edge.
    assert max(drawn_end for _, drawn_end, *_ in tab.evaluate("() => rectangles()")) > limits(tab)[1]


def test_a_box_zooms_to_what_it_holds(large, open_tab):
    tab = open_tab(large)
    low, high = limits(tab)
    tab.get_by_title("Box Zoom").click()
    (left, right), y = tab.evaluate("() => frame('lanes')"), tab.evaluate("() => spot(0, 2)[1]")
    tab.mouse.move(left + 200, y)
    tab.mouse.down()
    tab.mouse.move(left + 400, y + 50, steps=6)
    tab.mouse.up()
    drawn(tab)
    pixel = (high - low) / (right - left)
    assert limits(tab) == pytest.approx([low + 200 * pixel, low + 400 * pixel], rel=0.02)


# Advice comes when the trace is analysed.
LABELS = "() => timeline().state.rows.labels.filter((label) => label && label != 'Advice')"


def test_tracks_are_hidden_filtered_pinned_and_moved(large, open_tab):
    tab = open_tab(large)
    every = ["Step", "Phase", "Tensor", "Vector", "Scalar", "DMA weights", "Collectives", "NeuronLink", "Host"]
    assert tab.evaluate(LABELS) == every
    tab.locator("#tracks-button").click()
    tracks = tab.locator("#tracks")
    tracks.get_by_label("Vector", exact=True).uncheck()
    drawn(tab)
    assert tab.evaluate(LABELS) == [label for label in every if label != "Vector"]
    tracks.get_by_role("button", name="Pin DMA weights").click()
    tracks.get_by_role("button", name="Pin Collectives").click()
    drawn(tab)
    assert tab.evaluate(LABELS)[:3] == ["DMA weights", "Collectives", "Step"]
    tracks.get_by_role("button", name="Move Collectives up").click()
    drawn(tab)
    assert tab.evaluate(LABELS)[:3] == ["Collectives", "DMA weights", "Step"]
    tab.wait_for_function("() => location.hash.includes('pinned=Collectives')")
    same = open_tab(tab.url)
    assert same.evaluate(LABELS) == tab.evaluate(LABELS)
    tracks.get_by_label("HBM in use", exact=True).uncheck()
    drawn(tab)
    tab.wait_for_function("() => !find('held')")
    tracks.get_by_placeholder("Filter").fill("tens")
    drawn(tab)
    assert tab.evaluate(LABELS) == ["Collectives", "DMA weights", "Tensor"]  # what is pinned stays
    assert tab.evaluate("() => timeline().state.figures().map(({name}) => name)") == ["lanes"]


def test_rows_and_quantities_are_moved_by_keyboard_and_pointer(large, open_tab):
    tab = open_tab(large)
    names = "() => timeline().state.figures().map(({name}) => name)"
    assert tab.evaluate(names) == ["lanes", "hbm", "neuronlink", "mfu", "held"]
    tab.locator("#tracks-button").click()
    tracks = tab.locator("#tracks")
    up = tracks.get_by_role("button", name="Move HBM in use up")
    up.focus()
    for _ in range(2):
        tab.keyboard.press("Enter")
        drawn(tab)
    assert tab.evaluate(names) == ["lanes", "hbm", "held", "neuronlink", "mfu"]
    assert up.evaluate("(button) => button == document.activeElement")
    tracks.get_by_role("button", name="Pin MFU").press("Space")
    tracks.locator("li", has_text="Scalar").drag_to(tracks.locator("li", has_text="Tensor"))
    drawn(tab)
    assert tab.evaluate(names) == ["mfu", "lanes", "hbm", "held", "neuronlink"]
    assert tab.evaluate(LABELS)[:5] == ["Step", "Phase", "Scalar", "Tensor", "Vector"]
    tab.wait_for_function("() => location.hash.includes('order=') && location.hash.includes('pinned=MFU')")
    same = open_tab(tab.url)
    assert [same.evaluate(what) for what in (names, LABELS)] == [tab.evaluate(what) for what in (names, LABELS)]
    tracks.get_by_role("button", name="Reset").click()
    drawn(tab)
    assert tab.evaluate(names) == ["lanes", "hbm", "neuronlink", "mfu", "held"]


def test_a_click_on_its_heading_folds_a_rank(view, open_tab, tmp_path):
    paths = [
        picture.write(tmp_path / f"{name}.parquet", picture.rows("tensor aaaa", scale=100), [picture.segment(0, 400)])
        for name in ("a", "b")
    ]
    tab = open_tab(view(*paths).address)
    assert tab.evaluate(LABELS) == ["▾ a.parquet, rank 0", "Step", "Tensor", "▾ b.parquet, rank 0", "Step", "Tensor"]
    tab.mouse.click(*tab.evaluate("() => spot(300, 0)"))
    tab.wait_for_function("() => timeline().state.rows.labels[0] == '▸ a.parquet, rank 0'")
    drawn(tab)
    assert tab.evaluate(LABELS) == ["▸ a.parquet, rank 0", "▾ b.parquet, rank 0", "Step", "Tensor"]
    assert {row for _, _, row, _ in tab.evaluate("() => rectangles()")} == {2, 3}


def test_events_are_found_chosen_and_followed(large, open_tab):
    tab = open_tab(large)
    tab.keyboard.press("/")
    tab.keyboard.type("layers.3.up")
    tab.locator("#pane li").first.wait_for()
    assert re.fullmatch(r"[\d,]+ events", tab.locator("#found").inner_text())
    tab.keyboard.press("Enter")
    drawn(tab)
    tab.locator("#pane dl").wait_for()
    first = tab.locator("#pane dl").inner_text()
    assert "model.layers.3.up" in first
    tab.keyboard.press("Escape")  # leaves the field
    tab.keyboard.press(".")
    tab.wait_for_function("text => document.querySelector('#pane dl').innerText != text", arg=first)
    tab.keyboard.press(",")
    tab.wait_for_function("text => document.querySelector('#pane dl').innerText == text", arg=first)
    before = limits(tab)
    tab.keyboard.press("f")
    drawn(tab)
    assert limits(tab) != before
    tab.wait_for_function("() => location.hash.includes('event=')")
    address = tab.url
    turn_to(tab, "operators")
    assert not tab.locator("#pane").is_visible()
    same = open_tab(address)
    same.wait_for_function("text => document.querySelector('#pane dl')?.innerText == text", arg=first)
    assert limits(same) == pytest.approx(limits(tab), abs=1)
    tab.go_back()
    tab.locator("#pane").wait_for()


def test_a_range_is_split(large, open_tab):
    tab = open_tab(large)
    tab.get_by_title("Choose a range").click()
    (left, right), y = tab.evaluate("() => frame('lanes')"), tab.evaluate("() => spot(0, 5)[1]")
    tab.mouse.move(left + 100, y)
    tab.mouse.down()
    tab.mouse.move(right - 100, y, steps=6)
    tab.mouse.up()
    tab.locator("#pane").get_by_text("How busy the engines of Rank 0 are").wait_for()
    told = tab.locator("#pane").inner_text()
    assert re.search(r"Where the time of Rank 0 goes\s+Compute\s+\d", told)
    assert re.search(r"What costs most of it\s+\d+\.\d % .*compute: aten", told)
    assert "Tensor" in told


def test_two_marks_split_the_time_between_them(view, open_tab, tmp_path):
    about = {"a": {"op_name": HOSTILE}}
    path = picture.write(
        tmp_path / "t.parquet", picture.rows("tensor aaaa..aa", about, scale=1000), [picture.segment(0, 8000)]
    )
    tab = open_tab(view(path).address)
    for at in (2000, 7000):
        tab.mouse.move(*tab.evaluate(f"() => spot({at}, 1)"))
        tab.wait_for_timeout(100)
        tab.keyboard.press("m")
    # Of 5 us the tensor engine works 3, between its events it is idle.
    tab.locator("#pane dd").nth(1).wait_for()
    assert tab.locator("#pane dt").first.inner_text() == "Compute"
    assert re.search(r"(59|60|61)\.\d %", tab.locator("#pane dd").first.inner_text())
    tab.locator("#pane li").get_by_text("<img src=x onerror").first.wait_for()
    assert tab.evaluate("() => window.hacked") is None


def test_notes_are_kept_for_other_tabs(view, open_tab, tmp_path):
    path = picture.write(tmp_path / "t.parquet", picture.rows("tensor ..aaaa", scale=100), [picture.segment(0, 600)])
    running = view(path)
    tab = open_tab(running.address)
    tab.mouse.click(*tab.evaluate("() => spot(400, 1)"))
    tab.locator("#pane textarea").fill("<b>slow</b>")
    tab.get_by_role("button", name="Save the note").click()
    words = "() => timeline().lanes.renderers.find((r) => r.name == 'notes').data_source.data.text"
    tab.wait_for_function(f"() => ({words})().includes('<b>slow</b>')")
    notes = path.with_name("t.parquet.notes.json")
    for _ in range(50):
        if notes.exists():
            break
        time.sleep(0.1)
    assert json.loads(notes.read_text()) == [{"at": 200, "text": "<b>slow</b>"}]
    other = open_tab(running.address)
    other.wait_for_function(f"() => ({words})().includes('<b>slow</b>')")


def test_hostile_names_stay_text(view, open_tab, tmp_path):
    about = dict.fromkeys(("op_name", "layer", "source", "phase", "dtype", "name"), HOSTILE)
    events = picture.rows("tensor aaaaaaaa\n cc bbbb", {"a": {**about, "op": 0}, "b": about}, scale=100)
    path = picture.write(
        tmp_path / "t.parquet",
        events,
        [picture.segment(0, 800)],
        {"op": [0], "op_name": [HOSTILE], "layer": [HOSTILE], "shapes": [HOSTILE]},
        script=HOSTILE,
        notes={HOSTILE: 1},
    )
    tab = open_tab(view(path).address)
    assert HOSTILE in tab.locator("h1").inner_text()
    assert "<img src=x onerror" in hover(tab, 400, 2)
    tab.mouse.click(*tab.evaluate("() => spot(400, 2)"))
    tab.locator("#pane dl").get_by_text("<img src=x onerror").first.wait_for()
    tab.locator("#search").fill("<img")
    tab.locator("#pane li").get_by_text("<img src=x onerror").first.wait_for()
    for name in PAGES:
        turn_to(tab, name)
        if name in ("operators", "roofline"):
            tab.locator(f"#sheet-{name} .slick-cell").get_by_text("<img src=x onerror").first.wait_for()
    assert tab.evaluate("() => window.hacked") is None
    assert tab.locator("img[src=x]").count() == 0


def test_two_traces_one_below_the_other(view, open_tab, tmp_path):
    paths = [
        picture.write(
            tmp_path / f"{name}.parquet", picture.rows(f"tensor {drawing}", scale=100), [picture.segment(0, 900)]
        )
        for name, drawing in (("before", "aaaa..bb"), ("after", "aa..bb"))
    ]
    tab = open_tab(view(*paths).address)
    labels = tab.evaluate("() => timeline().state.rows.labels")
    assert labels == [
        "▾ before.parquet, rank 0", "Step", "Tensor", "▾ after.parquet, rank 0", "Step", "Tensor",
    ]  # fmt: skip
    tensor = [(round(left), row) for left, _, row, _ in tab.evaluate("() => rectangles()") if row in (2, 5)]
    assert sorted(tensor, key=lambda at: at[::-1]) == [(0, 2), (600, 2), (0, 5), (400, 5)]


def test_operators_fold_by_module_and_are_saved(view, open_tab, tmp_path):
    # 8 us: 5 of them in net.0, of which 4 are a product; the other operator's name is a formula of a spreadsheet.
    about = {
        "a": {"op_name": "mm", "layer": "net.0.up", "phase": "forward", "op": 0}, "b": {"op_name": "=1+1", "layer": "net.0", "op": 1},
        "c": {"op_name": HOSTILE, "layer": HOSTILE, "op": 2},
    }  # fmt: skip
    path = picture.write(
        tmp_path / "t.parquet", picture.rows("tensor aaaabccc", about, scale=1000), [picture.segment(0, 8000)]
    )
    tab = open_tab(view(path).address)
    turn_to(tab, "operators")
    rows = tab.locator("#tree tbody tr")
    rows.first.wait_for()

    def named():
        return [text.split("\t")[0].strip() for text in rows.all_inner_texts()]

    assert named()[:5] == ["▾ net", "▾ 0", "▾ up", "mm", "=1+1"]
    assert rows.nth(1).inner_text().split("\t")[-2:] == ["5 us", "62.5 %"]
    rows.nth(1).get_by_role("button").click()
    assert named()[:2] == ["▾ net", "▸ 0"]
    assert named()[2].startswith("▸ <img")
    tab.get_by_role("button", name="A step").click()
    assert named()[0].startswith("▸ <img")
    tab.get_by_role("button", name="Unfold all").click()
    assert tab.locator("#tree").get_by_text("<img src=x onerror").count() > 1
    with tab.expect_download() as saved:
        tab.locator("#tree").get_by_role("button", name="CSV").click()
    lines = Path(saved.value.path()).read_text().splitlines()
    assert lines[:3] == [
        "name,layer,phase,bound,source,per_step_ns,share", "mm,net.0.up,forward,tensor,,4000,0.5", "'=1+1,net.0,,tensor,,1000,0.125",
    ]  # fmt: skip
    with tab.expect_download() as saved:
        tab.locator("#sheet-operators").get_by_role("button", name="CSV").click()
    assert saved.value.suggested_filename == "bottlenecks_by_operator.csv"
    assert Path(saved.value.path()).read_text().splitlines()[1].startswith("tensor,mm,net.0.up,forward,,4")
    assert tab.evaluate("() => window.hacked") is None


@pytest.mark.parametrize("way", ["served", "one file"])
def test_a_search_goes_over_all_ranks_that_are_shown(view, open_tab, tmp_path, way):
    # On both ranks `mm` and `mmm` of one layer; the line of `mm` leads to its events only, in the order of time and then of ranks.
    about = {"a": {"op_name": "mm", "layer": "net"}, "b": {"op_name": "mmm", "layer": "net"}}
    drawing = "tensor baa.b\n rank 1\n tensor .aab."
    events = [{**event, "id": number} for number, event in enumerate(picture.rows(drawing, about, scale=100))]
    path = picture.write(tmp_path / "t.parquet", events, [picture.segment(0, 500)], machine={"ranks_per_chip": 2})
    page = tmp_path / "page.html"
    assert way == "served" or main(["view", str(path), "-o", str(page), "--no-browser"]) == 0
    tab = open_tab(view(path).address if way == "served" else page.as_uri())
    tab.locator("select[name=rank]").select_option(label="Chip 0")
    tab.wait_for_function("() => timeline().state.keys == '0/0,0/1'")
    tab.locator("#search").fill("net")
    lines = tab.locator("#pane li")
    lines.first.wait_for()
    assert sorted(lines.all_inner_texts()) == ["mm · net (2)", "mmm · net (3)"]
    assert tab.locator("#found").inner_text() == "5 events"
    lines.get_by_text("mm · net (2)").click()
    chosen = "() => new URLSearchParams(location.hash).get('event')"  # trace, rank and event
    tab.wait_for_function(f"() => ({chosen})() == '0/0/1'")
    tab.locator("h1").click()
    tab.keyboard.press("n")
    tab.wait_for_function(f"() => ({chosen})() == '0/1/0'")
    tab.keyboard.press("n")
    tab.locator("#notice", has_text="No further event").wait_for()
    tab.keyboard.press("p")
    tab.wait_for_function(f"() => ({chosen})() == '0/0/1'")


@pytest.mark.parametrize("way", ["served", "one file"])
def test_a_click_on_a_difference_shows_both_places(view, open_tab, tmp_path, way):
    # `mm` takes 4 us before, 2 us after, from 0 on; `soft` stands at 6 us before and at 4 us after.
    about = {"a": {"op_name": "mm"}, "b": {"op_name": HOSTILE, "layer": HOSTILE}}
    paths = [
        picture.write(
            tmp_path / f"{name}<img src=x onerror=hacked=1>.parquet", picture.rows(f"tensor {drawing}", about, scale=1000),
            [picture.segment(0, 8000 - lost)],
        )
        for name, drawing, lost in (("before", "aaaa..bb", 0), ("after", "aa..bb", 2000))
    ]  # fmt: skip
    page = tmp_path / "page.html"
    assert way == "served" or main(["diff", *map(str, paths), "-o", str(page)]) == 0
    tab = open_tab(view(*paths).address if way == "served" else page.as_uri())
    turn_to(tab, "compare")
    sheet = tab.locator("#sheet-compare")
    sheet.get_by_text("step time 8 us -> 6 us: -2 us (-25.0 %)").wait_for()
    assert " ".join(sheet.locator(".slick-row").first.inner_text().split()) == "Tensor engine 6 us 4 us -2 us"
    sheet.locator(".slick-cell").get_by_text("<img src=x onerror").first.click()
    # The later trace is drawn 2 us later, so that both stand at 6 us, one below the other; the timelines are on the same page.
    tab.wait_for_function("() => timeline().state.rows.labels.at(-2).endsWith('rank 0 (drawn 2 us later)')")
    drawn(tab)
    labels = tab.evaluate("() => timeline().state.rows.labels.map((label) => label.split(' ')[0])")
    assert labels == ["Tensor", "Tensor", "▾", "Step", "▾", "Step"]
    places = [(round(left), row) for left, _, row, _ in tab.evaluate("() => rectangles()") if row < 2]
    assert sorted(places) == [(0, 0), (2000, 1), (6000, 0), (6000, 1)]
    told = tab.locator("#pane dd").all_inner_texts()
    assert told == ["1 event in 1 step; at 6 us for 2 us", "1 event in 1 step; at 4 us for 2 us"]
    assert sheet.is_visible()
    assert tab.locator("#page-timeline").is_visible()
    tab.wait_for_function("() => location.hash.includes('shift=0%2C2000')")
    if way == "served":
        assert sorted(open_tab(tab.url).evaluate("() => rectangles()"))[-1][0] == 6000
    tab.locator("h1").first.click()
    tab.keyboard.press("0")
    tab.wait_for_function(
        "() => timeline().state.rows.labels[0].includes('rank 0') && timeline().state.rows.labels[3].endsWith('rank 0')"
    )
    assert tab.evaluate("() => window.hacked") is None


@pytest.mark.parametrize("change", ["deleted", "written anew"])
def test_a_trace_that_goes_is_told_once_and_no_more_is_asked(chromium, view, tmp_path, change):
    path = synthetic_trace.write(tmp_path / "t.parquet", 20_000)
    running = view(path)
    tab = chromium.new_page()
    errors, asked = [], []
    tab.on("pageerror", lambda e: errors.append(str(e)))
    tab.goto(running.address)
    tab.wait_for_function("() => Bokeh.documents[0]?.get_model_by_name('lanes').x_range.neuronprof?.drawn")
    path.unlink() if change == "deleted" else synthetic_trace.write(path, 1000)
    while not tab.locator("#notice").is_visible():  # the files are looked at once a second
        tab.keyboard.press("w")
        tab.wait_for_timeout(300)
        tab.keyboard.press("0")
        tab.wait_for_timeout(300)
    says = f"{path} was {change} while it was open. Start neuronprof view again to see it."
    tab.locator("#notice", has_text=says).wait_for()
    tab.on("request", lambda request: asked.append(request.url))
    for key in "wwdda0":
        tab.keyboard.press(key)
        tab.wait_for_timeout(50)
    tab.locator("#search").fill("layers")
    tab.wait_for_timeout(300)
    assert (asked, errors) == ([], [])
    assert tab.locator("#notice").inner_text() == says
    tab.close()


def test_ctrl_c_ends_it_at_once_and_the_page_says_so(chromium, view, tmp_path):
    running = view(synthetic_trace.write(tmp_path / "t.parquet", 20_000))
    tab = chromium.new_page()
    tab.goto(running.address)
    tab.wait_for_function("() => Bokeh.documents[0]?.get_model_by_name('lanes').x_range.neuronprof?.drawn")
    code, seconds = running.interrupt()
    assert code == 0
    assert seconds < 2
    tab.keyboard.press("w")
    tab.locator("#notice", has_text="The server does not answer: it was stopped.").wait_for()
    tab.close()


def test_a_click_on_the_map_opens_a_rank(view, open_tab, tmp_path):
    # Of four ranks, rank 0 and rank 2 are written in full; rank 3 waits longest.
    path = tmp_path / "t.parquet"
    with TraceWriter(path) as writer:
        events = picture.rows("tensor aaaa\n rank 2\n tensor ..aa", scale=100)
        writer.write({name: np.array([event[name] for event in events]) for name in events[0] if name not in schema.STRINGS}
                     | {name: [event.get(name) for event in events] for name in schema.STRINGS})  # fmt: skip
        every = {"step": [0] * 4, "rank": range(4), "chip": [0] * 4, "core": range(4), "stage": [0] * 4, "engine": ["tensor"] * 4,
                 "busy_ns": [100] * 4, "wait_peer_ns": [0, 10, 20, 3000], "end_ts": [400] * 4}  # fmt: skip
        writer.close({"segments": [picture.segment(0, 400)], "world_size": 4}, None, every)
    tab = open_tab(view(path).address)
    turn_to(tab, "ranks")
    tab.wait_for_function("() => find('rank map')?.view.frame.bbox.width > 100")
    assert hover(tab, 0, 3, "rank map").split() == ["Rank", "3", "Step", "Time", "0", "3", "us"]
    tab.locator("select[name=measure]").select_option("tensor busy")
    tab.wait_for_function("() => location.hash.includes('measure=tensor+busy')")
    same = open_tab(tab.url)
    same.wait_for_function("() => document.querySelector('#sheet-ranks .bk-Column') && find('rank map')")
    assert same.locator("select[name=measure]").input_value() == "tensor busy"
    tab.mouse.click(*tab.evaluate("() => spot(0, 3, 'rank map')"))
    tab.locator("#notice", has_text="The events of rank 3 are not in the trace").wait_for()
    tab.wait_for_timeout(600)  # two clicks sooner are a double click
    tab.mouse.click(*tab.evaluate("() => spot(0, 2, 'rank map')"))
    tab.wait_for_function("() => timeline().state.keys == '0/2'")
    assert not tab.locator("#notice").is_visible()
    assert tab.locator("#page-timeline").is_visible()


def test_advice_stands_where_it_shows(view, open_tab):
    tab = open_tab(view(SAMPLE).address)
    tab.wait_for_function("() => timeline().state.advised?.length")
    drawn(tab)
    assert tab.evaluate("() => timeline().state.rows.labels.at(-1)") == "Advice"
    box, found = tab.evaluate("() => { const {advised, advice} = timeline().state; return [advised[0], advice[0]] }")
    assert (found["key"], box["left"]) == ("0/0", found["start"])
    row, middle = round(-box["top"] - 0.12), (found["start"] + found["end"]) / 2
    assert " ".join(found["wrong"].split()[:5]) in hover(tab, middle, row)
    tab.mouse.click(*tab.evaluate(f"() => spot({middle}, {row})"))
    tab.locator("#pane").get_by_text(found["change"]).wait_for()
    drawn(tab)
    start, end = limits(tab)
    assert start < middle < end
    assert end - start < 1.5 * (found["end"] - found["start"])


def test_code_stands_beside_an_event_as_text(view, open_tab, tmp_path):
    (tmp_path / "train.py").write_text(f"import this\nloss = '{HOSTILE}'\n")
    about = {"a": {"op": 0, "op_name": "mm", "source": "train.py:2"}}
    path = picture.write(
        tmp_path / "t.parquet", picture.rows("tensor aaaa", about, scale=100), [picture.segment(0, 400)]
    )
    tab = open_tab(view(path).address)
    tab.mouse.click(*tab.evaluate("() => spot(200, 1)"))
    tab.locator("#pane pre[aria-label=Source]").wait_for()
    assert tab.locator("#pane pre b").inner_text() == f"   2  loss = '{HOSTILE}'\n"
    assert tab.evaluate("() => window.hacked") is None
