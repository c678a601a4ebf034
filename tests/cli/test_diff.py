"""`neuronprof diff` as users see it."""

import json

import picture
import pytest

from neuronprof.cli import main


@pytest.fixture
def traces(tmp_path):
    """Steps of 10, 12 and 10, 13 us; the matmul of the second is slower."""
    paths = []
    for number, lengths in enumerate([(10, 12), (10, 13)]):
        segments, drawn, at = [], "", 0
        for step, length in enumerate(lengths):
            segments.append(picture.segment(at, at + length * 1000, step))
            drawn, at = drawn + "ab"[step] * length, at + length * 1000
        events = picture.rows(
            f"tensor {drawn}", {name: {"op_name": "aten.mm", "step": s} for s, name in enumerate("ab")}, scale=1000
        )
        paths.append(str(picture.write(tmp_path / f"{number}.parquet", events, segments)))
    return paths


def test_a_difference_within_the_noise_is_called_so(traces, capsys):
    """Means 11 and 11.5; variances 2 and 4.5, halved and added 3.25; 1.7 degrees of freedom, t = 12.71: 12.71 * sqrt(3.25) = 22.9."""
    assert main(["diff", *traces]) == 0
    out = capsys.readouterr().out
    assert (
        "step time 11 us -> 11.5 us: +500 ns (+4.5 %), which is noise: the steps differ by 22.9 us among themselves"
        in out
    )
    assert out.splitlines()[-2] == "sum of all parts: 500 ns"


def test_json(traces, capsys):
    assert main(["diff", *traces, traces[0], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [t["step_time_ns"] for t in found["traces"]] == [11000, 11500, 11000]
    assert [(d["difference_ns"], d["is_noise"]) for d in found["differences"]] == [(500, True), (0, True)]


def test_the_page_holds_both_timelines(traces, tmp_path, capsys):
    page = tmp_path / "diff.html"
    assert main(["diff", *traces, "-o", str(page)]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {page}\n")
    text = page.read_text()
    assert '"0/0,1/0"' in text  # rank 0 of each
    assert all(trace in text for trace in traces)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a.parquet"], "One trace has nothing to be compared with"),
        (["a.parquet", "b.parquet"], "There is no trace a.parquet"),
    ],
)
def test_mistakes_are_one_sentence(capsys, arguments, sentence):
    assert main(["diff", *arguments]) == 2
    assert sentence in capsys.readouterr().err
