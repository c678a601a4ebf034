"""What-if: the graph of a step gives the trace back, and with changed durations what a fresh recording gives."""

import json
import re
from pathlib import Path

import numpy as np
import picture
import pytest

import neuronprof
from neuronprof.analyze import changes, whatif
from neuronprof.analyze.walk import Whole
from neuronprof.cli import main
from neuronprof.errors import NeuronprofError
from neuronprof.trace.reader import open_trace

SCRIPT = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 512)).to("neuron")
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(3):
    loss = model(torch.randn(1024, 512, device="neuron")).square().mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
"""
CHIP = Path(neuronprof.__file__).parent / "hardware" / "trainium4.toml"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Records the script: recorded(name, edits of the chip's numbers by 'section.name', options)."""
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    folder = tmp_path_factory.mktemp("whatif")
    (folder / "train.py").write_text(SCRIPT)

    def record(name, edits=None, **options):
        text = CHIP.read_text()
        for key, factor in (edits or {}).items():
            section, quantity = key.split(".")
            pattern = rf"(\[{section}\][^\[]*?\n{quantity} = {{ value = )([0-9_.e+-]+)"
            text = re.sub(pattern, lambda m, times=factor: f"{m[1]}{float(m[2].replace('_', '')) * times!r}", text)
        (folder / f"{name}.toml").write_text(text)
        path = folder / f"{name}.parquet"
        neuronprof.record(
            folder / "train.py",
            output=path,
            chip=str(folder / f"{name}.toml"),
            values="none",
            steps=2,
            quiet=True,
            **options,
        )
        return Whole(open_trace(path))

    return record


@pytest.fixture(scope="module")
def plain(recorded):
    return recorded("plain", dp=16)


def time_of(whole, *scale):
    return int(whatif.ask(whole, whatif.parse(scale)).times["step_time_ns"].iloc[-1])


def test_no_change_gives_the_same_trace_event_by_event(recorded):
    whole = recorded("jitter", dp=8, jitter=0.03, slow_chips={1: 1.3})
    again = changes.run(whole.step, whole.context)
    assert (again.start == whole.step.start).all()
    assert (again.end == whole.step.end).all()
    assert again.end_ts == whole.step.window.end
    assert not whole.step.lag[whole.step.parent < 0].any()  # and it is the graph that explains every start


@pytest.mark.parametrize(
    ("scale", "edits"),
    [
        ("neuronlink=2", {"neuronlink.bandwidth": 2}),
        ("hbm=0.5", {"package.hbm_bandwidth": 0.5}),
        ("hbm=2", {"package.hbm_bandwidth": 2}),
        ("dma=2", {"dma.bandwidth": 2}),
        ("tensor=2", {"tensor.clock": 2}),
        ("vector=2", {"vector.clock": 2}),
    ],
)
def test_a_changed_chip_agrees_with_a_fresh_recording(plain, recorded, scale, edits):
    fresh = recorded(scale.replace("=", "-"), edits, dp=16)
    assert time_of(plain, scale) == pytest.approx(time_of(fresh), rel=0.01)


@pytest.mark.parametrize("algorithm", ["kangaring", "rdh"])
def test_a_slower_link_hides_what_is_moved_inside_the_chips(recorded, algorithm):
    # At a quarter of the bandwidth the steps of a ring take as long on the links as beside them in the chips.
    options = {"dp": 16, "collective_algorithm": algorithm}
    plain, fresh = recorded(algorithm, **options), recorded("slow link", {"neuronlink.bandwidth": 0.25}, **options)
    assert time_of(plain, "neuronlink=0.25") == pytest.approx(time_of(fresh), rel=0.001)


def test_a_fixed_chip_agrees_with_a_recording_without_the_fault(plain, recorded):
    slow = recorded("slow", dp=16, slow_chips={2: 1.5})
    assert time_of(slow) > 1.1 * time_of(plain)
    answer = whatif.ask(slow, whatif.parse(fix_chip=[2])).times
    assert answer["step_time_ns"].iloc[-1] == pytest.approx(time_of(plain), rel=0.001)


# Two ranks, one all-reduce that starts when both have their data.
#            0         1
#            0123456789012345
#   rank 0   aaaa....RRbbbb      waits 4 for its peer
#   rank 1   cccccccccRRd
DRAWN = """
tensor aaaa.......bbbb
cc     ....~~~~~RR....
rank 1
tensor ccccccccc..d...
cc     .........RR....
"""


def drawn(trace):
    events = picture.rows(
        DRAWN, {"R": {"op_name": "reduce", "layer": "net", "collective": 1, "replica_group": "dp:0-1"}}
    )
    for number, event in enumerate(events):
        event["id"] = number + 1
    # rows: a 1, b 2, R 3, c 4, d 5, R 6; an all-reduce waits for its rank's product, what follows for the all-reduce
    deps = {2: 3, 3: 1, 5: 6, 6: 4}
    order = {1: 1, 3: 2, 2: 3, 4: 11, 6: 12, 5: 13}  # identifiers grow in program order within a rank
    for event in events:
        before = deps.get(event["id"])
        event["deps"] = [order[event["id"]] - order[before]] if before else []
    for event in events:
        event["id"] = order[event["id"]]
    return Whole(trace(events, [picture.segment(0, 15)]))


@pytest.mark.parametrize(
    ("question", "time"),
    [
        ({}, 15),
        ({"scale": ["op:c=0.5"]}, 4 + 2 + 4),  # 4.5 rounds to the even 4: c ends at 4, as a does
        ({"scale": ["tensor=2"]}, 4 + 2 + 2),  # c takes 4, b 2
        ({"scale": ["op:b=0"]}, 11 + 1),  # d is left
        ({"without_wait": ["peer"]}, 9 + 2 + 1),  # rank 0 is done at 10, rank 1 at 12
        ({"scale": ["op:c=0.5", "op:b=0.5"]}, 4 + 2 + 2),
        ({"scale": ["layer:net=2"]}, 9 + 4 + 4),
    ],
)
def test_questions_to_a_picture(trace, question, time):
    answer = whatif.ask(drawn(trace), whatif.parse(**question))
    assert int(answer.times["step_time_ns"].iloc[-1]) == time


def test_several_changes_alone_and_together(trace):
    answer = whatif.ask(drawn(trace), whatif.parse(["op:c=0.5", "op:b=0.5"]))
    assert picture.table(answer.times) == [
        "change step_time_ns gain_ns gain",
        "as it is 15 0 0",
        "op:c=0.5 10 5 0.3333",
        "op:b=0.5 13 2 0.1333",
        "all together 8 7 0.4667",
    ]


def test_the_critical_path_goes_over_both_ranks(trace):
    from neuronprof.analyze.critical_path import CriticalPath

    found = CriticalPath().answer(drawn(trace))
    path = found["critical_path"]
    assert path[["rank", "op_name", "start_ts", "time_ns"]].to_numpy().tolist() == [
        [1, "c", 0, 9],
        [0, "reduce", 9, 2],
        [0, "b", 11, 4],
    ]
    by = found["critical_path_by"]
    assert (by.groupby("by")["time_ns"].sum() == 15).all()
    assert picture.table(by[by["by"] == "rank"].drop(columns="by")) == ["value time_ns share", "1 9 0.6", "0 6 0.4"]
    # a could end 5 ns later, d 3 ns
    slack = found["critical_path_slack"].set_index("op_name")["slack_ns"]
    assert slack.to_dict() == {"a": 5, "b": 0, "c": 0, "d": 3, "reduce": 0}


def test_the_command_prints_times_and_json(trace, capsys):
    path = str(drawn(trace).trace.path)
    assert main(["whatif", path, "--scale", "tensor=2", "--without-wait", "peer", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["change"] for row in said["times"]] == [
        "as it is",
        "tensor=2",
        "without waiting for peer",
        "all together",
    ]
    assert main(["whatif", path, "--scale", "tensor=2"]) == 0
    assert "Where the time goes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({"scale": ["tensor"]}, "cannot be read"),
        ({"scale": ["warp=2"]}, "names no engine"),
        ({"scale": ["layer:nothing*=2"]}, "matches nothing"),
        ({"without_wait": ["godot"]}, "nothing that events wait for"),
        ({"fix_chip": [17]}, "Chip 17 has no events"),
        ({"overlap": ["everything"]}, "is not known"),
    ],
)
def test_questions_that_make_no_sense(trace, question, says):
    with pytest.raises(NeuronprofError, match=says):
        whatif.ask(drawn(trace), whatif.parse(**question))


def test_a_trace_without_dependencies_comes_out_as_it_was(trace):
    # queues are all that is known: events in others keep their distance
    whole = Whole(trace(picture.rows("tensor aa.bb\ndma ...c."), [picture.segment(0, 5)]))
    again = changes.run(whole.step, whole.context)
    assert np.array_equal(again.start, whole.step.start)
    assert time_of(whole, "tensor=2") == 4  # a and b are one shorter each, and the gap between them stays


@pytest.mark.parametrize(
    ("fault", "ranks", "cause", "slower"),
    [
        ({"slow_chips": {2: 1.5}}, {8, 9, 10, 11}, "slow chip", 1.5),
        ({"throttled": {5: 2.0}}, {5}, "slow tensor engine", 2.0),
    ],
)
def test_a_planted_straggler_is_found_with_its_price(plain, recorded, fault, ranks, cause, slower):
    from neuronprof.analyze.stragglers import Stragglers

    slow = recorded("straggler", dp=16, **fault)
    worst = Stragglers().answer(slow)["stragglers"].iloc[0]
    assert worst["rank"] in ranks
    assert worst["cause"] == cause
    assert worst["slower"] == pytest.approx(slower, rel=0.01)
    assert worst["gain_ns"] == pytest.approx(time_of(slow) - time_of(plain), rel=0.01)


def test_nobody_is_blamed_where_all_ranks_are_the_same(plain):
    from neuronprof.analyze.stragglers import Stragglers

    assert Stragglers().answer(plain)["stragglers"].empty


@pytest.fixture
def two_steps(trace):
    """Steps of 2 and 4 ns on the tensor engine."""
    first, second = picture.rows("tensor aabbbb")
    return trace([first, second | {"step": 1}], [picture.segment(0, 2), picture.segment(2, 6, 1)])


def test_what_if_over_all_steps(two_steps):
    assert picture.table(whatif.over_steps(two_steps, whatif.parse(["tensor=2"]))) == [
        "step change step_time_ns gain_ns gain",
        "0 as it is 2 0 0",
        "0 tensor=2 1 1 0.5",
        "1 as it is 4 0 0",
        "1 tensor=2 2 2 0.5",
    ]


def test_a_step_is_chosen_by_its_number(two_steps, capsys):
    path = str(two_steps.path)
    assert main(["whatif", path, "--scale", "tensor=2", "--step", "1"]) == 0
    assert capsys.readouterr().out.startswith("Step 1")
    assert main(["whatif", path, "--scale", "tensor=2", "--step", "all", "--json"]) == 0
    assert [row["step_time_ns"] for row in json.loads(capsys.readouterr().out)["times"]] == [2, 1, 4, 2]
    for step, told in (("7", "has no training step 7; it has 0, 1."), ("last", "--step last is no step")):
        assert main(["whatif", path, "--step", step]) == 2
        assert told in capsys.readouterr().err
