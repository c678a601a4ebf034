"""How soon the view's first picture stands, how long a zoom takes, and what server and page need, in headless Chromium.

    python benchmarks/view_open.py [--events 1000000 10000000] [--trace trace.parquet]

For each trace: `neuronprof view` in a process of its own, its levels of detail summed anew, then opened several times; for those that
fit into one page also `-o page.html`. Times are also given as multiples of the same browser opening a trace of one event in the same run.
Exits with 1 when a limit is not kept: what it prints says which.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import picture
import synthetic_trace
from playwright.sync_api import sync_playwright

from neuronprof.trace.reader import open_trace
from neuronprof.view import page

ZOOMS = 60
OPENED = 3
IN_A_PAGE = 1_000_000  # events up to which the page without a server is measured too
LIMITS = {"picture": (2.0, "s"), "zoom": (100, "ms"), "server": (1500, "MB"), "tab": (300, "MB"), "file": (15, "MB")}
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
PAINTED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
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


class Served:
    """`neuronprof view` of a trace, with a cache folder of its own."""

    def __init__(self, trace, cache):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "neuronprof", "view", "--no-browser", str(trace)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        )  # fmt: skip
        self.address = re.match(r"(\S+) shows", self.process.stdout.readline())[1]

    def analysed(self):
        """Waits until the other pages are there, or refused."""
        address = f"{self.address}ask/sheet?name=heading"
        while self.process.poll() is None:
            try:
                with urllib.request.urlopen(address) as answer:
                    if answer.status != 202:
                        return
            except urllib.error.HTTPError:
                return
            time.sleep(0.5)

    def memory(self):
        """MB of its own, and MB of the kept files that it has mapped, which the system takes back when it needs them."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return [int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024 / 1e6 for name in ("RssAnon", "RssFile")]

    def stop(self):
        """Ends it."""
        self.process.terminate()
        self.process.communicate()


def first_picture(browser, address, timeout=30):
    """Seconds from asking for the page to the picture, and the open page."""
    tab = browser.new_context(viewport={"width": 1280, "height": 720}).new_page()
    began = time.perf_counter()
    tab.goto(address)
    tab.wait_for_function(DRAWN, timeout=1000 * timeout)
    tab.evaluate(PAINTED)
    return time.perf_counter() - began, tab


def opened(browser, address):
    """The shortest of several first pictures, and the page of the last one."""
    taken = []
    for _ in range(OPENED):
        seconds, tab = first_picture(browser, address)
        taken.append(seconds)
        if len(taken) < OPENED:
            tab.context.close()
    return min(taken), tab


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


def working(session):
    """Seconds that the page's thread has worked so far, waiting for server, screen and other programs not counted."""
    found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return found["TaskDuration"]


def heap(tab):
    """Bytes that the page's JavaScript holds."""
    session = tab.context.new_cdp_session(tab)
    session.send("HeapProfiler.collectGarbage")
    return session.send("Runtime.getHeapUsage")["usedSize"]


def measured(browser, trace, folder, base):
    """Prints what one trace takes; returns the limits that are not kept."""
    server = Served(trace, folder / "cache")
    summed, tab = first_picture(browser, server.address, timeout=3600)
    tab.context.close()
    server.analysed()
    seconds, tab = opened(browser, server.address)
    session = tab.context.new_cdp_session(tab)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    began = working(session)
    taken = zooms(tab)
    worked = 1000 * (working(session) - began) / len(taken)
    own, mapped = server.memory()
    found = {"picture": seconds, "zoom": statistics.quantiles(taken, n=20)[-1],
             "server": own, "tab": heap(tab) / 1e6}  # fmt: skip
    tab.context.close()
    server.stop()
    events = open_trace(trace).num_events
    print(f"\n{events:,} events")
    print(f"  opened first                  {summed:.1f} s: levels of detail are summed, which is kept")
    print(
        f"  first picture                 {seconds:.2f} s, {seconds / base:.1f} times that of one event ({base:.2f} s)"
    )
    print(
        f"  a zoom, 95th percentile       {found['zoom']:.0f} ms of {len(taken)}, median {statistics.median(taken):.0f} ms, "
        f"{worked:.0f} ms of it the page's work"
    )
    print(
        f"  the server's memory           {own:.0f} MB, and {mapped:.0f} MB of kept files mapped; {found['tab']:.0f} MB in the page"
    )
    if events <= 1.05 * IN_A_PAGE:
        found["file"] = in_a_page(browser, trace, folder / "page.html")
    return [
        f"{name} {found[name]:.0f} {unit} > {most} {unit}"
        for name, (most, unit) in LIMITS.items()
        if found.get(name, 0) > most
    ]


def in_a_page(browser, trace, output):
    """The same without a server; returns the size of the page, MB."""
    began = time.perf_counter()
    page.write(open_trace(trace), output)
    built, size = time.perf_counter() - began, output.stat().st_size / 1e6
    seconds, tab = opened(browser, output.as_uri())
    tab.context.close()
    print(f"  page without a server         {size:.1f} MB, built in {built:.1f} s, first picture {seconds:.2f} s")
    return size


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--trace", help="measure this trace instead of made ones")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    missed = []
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"), args=ARGUMENTS
        )
        one = Served(picture.write(folder / "one.parquet", picture.rows("tensor aa")), folder / "cache")
        base, tab = opened(browser, one.address)
        tab.context.close()
        one.stop()
        for events in [0] if args.trace else args.events:
            trace = args.trace or synthetic_trace.write(folder / "made.parquet", events)
            missed += measured(browser, trace, folder, base)
        browser.close()
    shutil.rmtree(folder)
    print("".join(f"\nnot kept: {what}" for what in missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
