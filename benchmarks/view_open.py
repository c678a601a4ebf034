"""How large the page of a trace is, how soon its first picture stands, and how long a zoom takes, in headless Chromium.

    python benchmarks/view_open.py [--events 1000000] [--trace trace.parquet]

Times of the page are also given as multiples of the same browser opening a page with one event, measured in the same run.
Exits with 1 when the page is too large or too slow.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import picture
import synthetic_trace
from playwright.sync_api import sync_playwright

from neuronprof.trace.reader import open_trace
from neuronprof.view import page

ZOOMS = 60
MOST_SECONDS = 5.0  # for a million events
MOST_BYTES = 15e6
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DRAWN = """() => {
  const state = globalThis.Bokeh?.documents[0]?.get_model_by_name("lanes")?.x_range.neuronprof
  return state?.drawn && !state.pending && !state.stale()
}"""
# Sets the window and answers when the page has painted it: how many milliseconds that took.
ZOOM = """async ([start, end]) => {
  const range = Bokeh.documents[0].get_model_by_name("lanes").x_range
  const began = performance.now()
  range.setv({start, end})
  do
    await new Promise((done) => requestAnimationFrame(done))
  while (range.neuronprof.pending || range.neuronprof.stale())
  await new Promise((done) => requestAnimationFrame(done))
  return performance.now() - began
}"""


def first_picture(browser, path):
    """Seconds from asking for the page to the picture, and the open page."""
    tab = browser.new_page(viewport={"width": 1280, "height": 720})
    began = time.perf_counter()
    tab.goto(path.as_uri())
    tab.wait_for_function(DRAWN)
    tab.screenshot()
    return time.perf_counter() - began, tab


def zooms(tab):
    """Milliseconds of each of a series of zooms in, out and aside."""
    low, high = tab.evaluate(
        "() => { const r = Bokeh.documents[0].get_model_by_name('lanes').x_range; return [r.start, r.end] }"
    )
    taken = []
    for number in range(ZOOMS):
        share = 0.5 ** (number % 15)
        start = low + (high - low) * (1 - share) * (0.1 + 0.8 * (number * 37 % ZOOMS) / ZOOMS)
        taken.append(tab.evaluate(ZOOM, [start, start + share * (high - low)]))
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--trace", help="measure this trace instead of a made one")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    path = args.trace or synthetic_trace.write(folder / "large.parquet", args.events)
    trace = open_trace(path)
    began = time.perf_counter()
    large = page.write(trace, folder / "large.html")
    built, size = time.perf_counter() - began, large.stat().st_size
    small = page.write(
        open_trace(picture.write(folder / "small.parquet", picture.rows("tensor aa"))), folder / "small.html"
    )
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"), args=ARGUMENTS
        )
        base = min(first_picture(browser, small)[0] for _ in range(3))
        seconds, tab = min((first_picture(browser, large) for _ in range(3)), key=lambda pair: pair[0])
        taken = zooms(tab)
        browser.close()
    shutil.rmtree(folder)
    zoom = statistics.quantiles(taken, n=20)[-1]
    print(f"events                          {trace.num_events:,}")
    print(f"page                            {size / 1e6:.1f} MB, built in {built:.1f} s")
    print(
        f"first picture                   {seconds:.2f} s, {seconds / base:.1f} times a page with one event ({base:.2f} s)"
    )
    print(f"a zoom, 95th percentile of {len(taken)}   {zoom:.0f} ms, median {statistics.median(taken):.0f} ms")
    return int(seconds > MOST_SECONDS or size > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
