"""Why so long, in a page without a server: the same words as those of the one with a server."""

from pathlib import Path

import picture
import pytest

from neuronprof import units
from neuronprof.analyze.explain import explain
from neuronprof.trace.reader import open_trace
from neuronprof.view import reasons, why

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "gpt.parquet"


@pytest.mark.parametrize("engine", ["tensor", "vector", "dma", "cc", "neuronlink", "hbm", "host"])
def test_events_are_explained_as_one_by_one(engine):
    trace = open_trace(SAMPLE)
    found = reasons.find(trace, 0, 0)
    events = trace.columns(("id", "engine", "kind", "duration_ns"), rank=0).to_pandas()
    of_engine = events[(events["engine"] == engine) & (events["kind"] != "memory")]
    for number, took in of_engine.iloc[:: max(1, len(of_engine) // 3)][["id", "duration_ns"]].itertuples(index=False):
        one_by_one = "\n\n".join(why.why_so_long(explain(trace, str(number)), why.LETTERS))
        assert f"It took {units.time(took)}{found.texts[found.number[number] - 1]}".split() == one_by_one.split()


def test_what_comes_from_elsewhere_was_measured(trace):
    found = reasons.find(trace(picture.rows("tensor aa..bb"), [picture.segment(0, 6)]), 0, 0)
    assert [text.split()[:4] for text in found.texts] == [[".", "Measured,", "not", "computed:"]]
    assert found.number.tolist() == [1, 1]


def test_a_formula_that_was_not_kept_takes_the_reason_and_not_the_page(trace):
    events = [{**e, "operands": "matmul batch=1 M=1 K=1 N=1 itemsize=2"} for e in picture.rows("tensor aa..bb")]
    found = reasons.find(trace(events, [picture.segment(0, 6)]), 0, 0)
    assert found.texts == [".\n\nThe trace keeps no formula that would say why."]
    assert found.number.tolist() == [1, 1]
