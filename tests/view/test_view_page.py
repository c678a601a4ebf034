"""The page as a file: where it goes, what it refuses, and that names from a trace are escaped in it."""

from pathlib import Path

import picture
import pytest

from neuronprof import cli
from neuronprof.errors import NeuronprofError
from neuronprof.view import page, timeline, tracks


@pytest.fixture
def two_ranks(trace):
    return trace(
        picture.rows("tensor aa..bb\n rank 3\n tensor aaaa", scale=10), [picture.segment(0, 60)], script="train.py"
    )


def test_view_writes_a_page_that_needs_no_network(two_ranks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["view", str(two_ranks.path), "--no-browser", "-o", "timeline.html"]) == 0
    assert capsys.readouterr().out == "wrote timeline.html\n"
    text = (tmp_path / "timeline.html").read_text()
    assert "<title>train.py · neuronprof</title>" in text
    assert "<script src=" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["timeline.html", "trace.parquet"]


def test_view_opens_the_page(two_ranks, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda uri: opened.append(uri) or True)
    output = tmp_path / "my page.html"
    assert cli.main(["view", str(two_ranks.path), "-o", str(output)]) == 0
    assert opened == [output.as_uri()]


def test_a_page_that_exists_is_kept_when_the_new_one_fails(two_ranks, tmp_path, monkeypatch):
    output = tmp_path / "page.html"
    output.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(NeuronprofError, match="No space left on device"):
        page.write(two_ranks, output)
    assert output.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "trace.parquet"]


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("missing/page.html", "folder .*missing does not exist"),
        ("page.pdf", "end it in .html"),
        ("page", "end it in .html"),
        ("folder.html", "is a folder"),
        ("file.txt/page.html", "does not exist"),
    ],
)
def test_an_output_that_cannot_be_is_refused_in_one_sentence(two_ranks, tmp_path, output, says):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(NeuronprofError, match=says):
        page.write(two_ranks, tmp_path / output)


def test_a_rank_that_is_not_there_is_refused(two_ranks, tmp_path):
    with pytest.raises(NeuronprofError, match=r"has no events of rank 1; it has ranks 0, 3\."):
        page.write(two_ranks, tmp_path / "page.html", rank=1)
    assert timeline.choose_ranks(two_ranks, 3) == [3]
    assert timeline.choose_ranks(two_ranks, None) == [0, 3]


def test_a_colouring_that_is_not_there_is_refused(two_ranks):
    with pytest.raises(NeuronprofError, match="'age' is not a colouring; choose one of phase, opcode, engine"):
        timeline.timeline(two_ranks, colour="age")


def test_a_trace_too_large_for_a_page_is_refused(two_ranks, monkeypatch):
    monkeypatch.setattr(timeline, "MOST_EVENTS", 0)
    with pytest.raises(NeuronprofError, match="about 1 events a rank, a page holds 0"):
        timeline.choose_ranks(two_ranks, None)


def test_names_from_the_trace_are_escaped(trace):
    hostile = "<script>alert(1)</script>"
    about = {"a": {"op_name": hostile, "layer": hostile, "source": hostile}}
    text = page.render([trace(picture.rows("tensor aaaa", about), [picture.segment(0, 4)], script=hostile)])
    assert hostile not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_throttled_is_where_the_array_was_cold(trace):
    from neuronprof.analyze.pyramid.build import build

    cold = {"a": {"operands": "matmul_cold M=128 cold=0.5"}, "b": {"operands": "matmul_tile M=128"}}
    detail = build(trace(picture.rows("tensor aabb..aa\n vector .a", cold), [picture.segment(0, 8)]), 0)
    assert [(start, end) for start, end, _ in detail.header["bands"]["throttled"]] == [(0, 2), (6, 8)]


def test_events_are_found_from_times_that_their_columns_cannot_hold(trace):
    from neuronprof.analyze.pyramid import lookup
    from neuronprof.analyze.pyramid.build import build

    detail = build(trace(picture.rows("tensor aa.bb"), [picture.segment(0, 5)]), 0)  # starts are counted in bytes
    every = lookup.matches(detail, "")
    ends = [(-5, 1), (-5, -1), (10**12, 1), (10**12, -1)]
    assert [lookup.find(detail, every, after, step) for after, step in ends] == [0, None, None, 1]


def test_ranks_are_grouped_by_chip_stage_and_mesh_axis(trace):
    # Eight ranks, tp 2 x dp 2 x pp 2, of which tp is the innermost and pp the outermost one; of stage 1 only rank 6 is in the trace.
    mesh = {"mesh": {"tp": 2, "dp": 2, "pp": 2}, "layout": {"strides": {"tp": 1, "dp": 2, "pp": 4}}}
    opened = trace([], pipeline={"count": 2, "stride": 4}, machine={"ranks_per_chip": 4}, **mesh)
    shown = timeline.what([opened], [[0, 1, 2, 3, 6]], (0, 1))
    assert {
        kind: {title: keys for keys, title in pairs} for kind, pairs in shown.choices.items() if kind != "Ranks"
    } == {
        "Chips": {"Chip 0": "0/0,0/1,0/2,0/3", "Chip 1": "0/6"},
        "Stages": {"Stage 0": "0/0,0/1,0/2,0/3", "Stage 1": "0/6"},
        "tp groups": {"tp: ranks 0 to 1": "0/0,0/1", "tp: ranks 2 to 3": "0/2,0/3", "tp: ranks 6 to 7": "0/6"},
        "dp groups": {
            "dp: ranks 0 to 2 by 2": "0/0,0/2",
            "dp: ranks 1 to 3 by 2": "0/1,0/3",
            "dp: ranks 4 to 6 by 2": "0/6",
        },
        "pp groups": {
            "pp: ranks 0 to 4 by 4": "0/0",
            "pp: ranks 1 to 5 by 4": "0/1",
            "pp: ranks 2 to 6 by 4": "0/2,0/6",
            "pp: ranks 3 to 7 by 4": "0/3",
        },
    }


def test_a_rank_that_was_slowed_says_by_what_in_all_its_steps(trace):
    from neuronprof.analyze.pyramid.build import build

    faults = {
        "throttled": {"1": 1.4},
        "slow_chips": {"0": 1.5},
        "degraded_links": {"0": 0.5},
        "machine": {"ranks_per_chip": 2},
    }
    steps = [picture.segment(0, 4), picture.segment(4, 8, 1)]
    shown = trace(picture.rows("rank 1\n tensor aabb..aa\n rank 2\n tensor aaaa"), steps, **faults)
    found = build(shown, 1)
    names = [
        found.header["words"]["name"][found.columns["alike_name"][row]] for *_, row in found.header["bands"]["slowed"]
    ]
    assert [(start, end) for start, end, _ in found.header["bands"]["slowed"]] == [(0, 4), (4, 8)]
    assert names == ["matmuls 1.4 times slower, chip 1.5 times slower, links at 50 %"] * 2
    assert "slowed" not in build(shown, 2).header["bands"]


def test_what_is_computed_again_is_no_model_work(trace):
    from neuronprof.analyze.pyramid.build import build

    about = {"a": {"phase": "forward", "flops": 8}, "b": {"phase": "recompute", "flops": 20}}
    detail = build(trace(picture.rows("tensor aaaabbbb", about), [picture.segment(0, 8)]), 0)
    # 8 FLOP in 4 ns and 20 in 4, a second.
    assert {name: detail.header["rates"][name]["largest"] for name in ("flops", "mfu")} == {"flops": 5e9, "mfu": 2e9}


def test_the_same_trace_gives_the_same_picture(two_ranks):
    from neuronprof.analyze.pyramid.build import build
    from neuronprof.view import reasons, scene

    why = reasons.find(two_ranks, 0, 0)
    first, second = (scene.whole(build(two_ranks, 0), two_ranks.metadata, why) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_rows_stand_in_the_order_of_the_engines():
    rows = [
        tracks.row(*key)
        for key in (
            ("host",),
            ("dma", 1),
            ("tensor",),
            ("phase",),
            ("cc", 0),
            ("cc", 1),
            ("dma", 9),
            ("dma", 1, 1),
            ("mystery",),
        )
    ]
    assert tracks.labels(sorted(rows)) == [
        "Phase", "Tensor", "DMA activations", "", "DMA 9", "Collectives 0", "Collectives 1", "Host", "Mystery",
    ]  # fmt: skip


def test_a_notebook_shows_the_timeline(two_ranks):
    from bokeh.models import Column

    import neuronprof

    assert isinstance(neuronprof.load(two_ranks.path).timeline(rank=3, colour="engine"), Column)
