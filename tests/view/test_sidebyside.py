"""The page of `neuronprof diff` in a browser: what one timeline shows, the other shows."""

import picture
import pytest

from neuronprof.analyze import compare
from neuronprof.trace.reader import open_trace
from neuronprof.view import sidebyside

RANGES = "[...Bokeh.documents[0].all_models].filter(m => m.name == 'lanes').map(m => [m.x_range.start, m.x_range.end])"


@pytest.mark.browser
def test_timelines_are_zoomed_together(chromium, tmp_path):
    traces = [
        open_trace(
            picture.write(
                tmp_path / f"{n}.parquet", picture.rows(f"tensor {'a' * n}", scale=1000), [picture.segment(0, n * 1000)]
            )
        )
        for n in (20, 30)
    ]
    page = sidebyside.write(traces, compare.compare([compare.read(trace) for trace in traces]), tmp_path / "page.html")
    complaints = []
    tab = chromium.new_page()
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(page.as_uri())
    tab.wait_for_function(f"window.Bokeh && Bokeh.documents.length && {RANGES}.length == 2")
    tab.evaluate(
        "[...Bokeh.documents[0].all_models].find(m => m.name == 'lanes').x_range.setv({start: 5000, end: 9000})"
    )
    tab.wait_for_function(f"{RANGES}.every(([start, end]) => start == 5000 && end == 9000)")
    tab.close()
    assert complaints == []
