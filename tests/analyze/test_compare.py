"""Traces side by side: what is aligned with what, parts that add up, and noise."""

import math

import picture
import pytest

from neuronprof.analyze import compare
from neuronprof.trace.reader import open_trace


def runs(tmp_path, *drawn):
    """A trace a picture, each step as long as the picture."""
    found = []
    for number, (text, about) in enumerate(drawn):
        length = len(text.split()[1])
        path = picture.write(tmp_path / f"{number}.parquet", picture.rows(text, about), [picture.segment(0, length)])
        found.append(compare.read(open_trace(path)))
    return found


def op(op_name, layer):
    return {"op_name": op_name, "layer": layer, "phase": "forward"}


def test_the_difference_by_operator_and_class_adds_up(tmp_path):
    # before  aaaabb..   fc 4, out 2, idle 2      8
    # after   aaaaaac.   fc 6 (called block.fc), new 1, idle 1     8 -> out is gone
    (found,) = compare.compare(
        runs(
            tmp_path,
            ("tensor aaaabb..", {"a": op("aten.mm", "model.fc"), "b": op("aten.exp", "loss")}),
            ("tensor aaaaaac.", {"a": op("aten.mm", "model.block.fc"), "c": op("aten.sort", "head")}),
        )
    )
    assert picture.table(found.operators) == [
        "op_name layer phase other before_ns after_ns difference_ns",
        "aten.exp loss forward '' 2 0 -2",
        "aten.mm model.fc forward aten.mm model.block.fc forward 4 6 2",
        "'' '' '' '' 2 1 -1",
        "aten.sort head forward '' 0 1 1",
    ]
    moved = found.classes[found.classes["difference_ns"] != 0]
    assert picture.table(moved) == ["class before_ns after_ns difference_ns", "idle 2 1 -1", "tensor 6 7 1"]
    assert found.difference_ns == found.operators["difference_ns"].sum() == found.classes["difference_ns"].sum() == 0
    assert math.isnan(found.noise_ns)
    assert not found.is_noise


def test_several_traces_are_compared_with_the_first(tmp_path):
    about = {"a": op("aten.mm", "fc")}
    found = compare.compare(runs(tmp_path, ("tensor aaaa", about), ("tensor aaaaa", about), ("tensor aa", about)))
    assert [d.difference_ns for d in found] == [1, -2]


def test_layers_with_other_numbers_are_aligned_each_once():
    ours = [("mm", f"layers.{n}.fc", "forward") for n in range(2)]
    theirs = [("addmm", f"layers.{n}.fc", "forward") for n in range(3)]
    assert compare.align(ours, theirs) == [(ours[0], theirs[0]), (ours[1], theirs[1]), (None, theirs[2])]


def test_what_differs_in_phase_or_in_everything_is_not_aligned():
    ours, theirs = [("mm", "fc", "forward")], [("mm", "fc", "backward"), ("sort", "head", "forward")]
    assert compare.align(ours, theirs) == [(ours[0], None), *((None, key) for key in theirs)]


def test_noise():
    # variances 1 and 1 of three values each: t(4) * sqrt(1/3 + 1/3) = 2.78 * 0.8165 = 2.27
    assert compare.noise([9, 10, 11], [10, 11, 12]) == pytest.approx(2.27, abs=0.005)
    assert compare.noise([5, 5], [7, 7]) == 0
    assert math.isnan(compare.noise([5], [7, 7]))
