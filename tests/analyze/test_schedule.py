"""The schedule of a pipeline, read from what its stages compute and send."""

import picture
import pytest

from neuronprof.analyze import registry
from neuronprof.analyze.schedule import Schedule

PHASES = {
    "f": {"phase": "forward", "op": 0},
    "b": {"phase": "backward", "op": 1},
    "o": {"phase": "optimizer", "op": 2},
    "r": {"replica_group": "dp:0-1", "phase": "backward"},
    **{letter: {"replica_group": "pp:0>1"} for letter in "ST"},
}
SHORT = {
    "forward": "F",
    "backward": "B",
    "backward of weights": "W",
    "optimizer": "O",
    "collectives": "C",
    "bubble": ".",
}


def numbered(drawing):
    """The events of a picture with ids in the order of their starts, a rank after another."""
    events = sorted(picture.rows(drawing, PHASES), key=lambda event: (event["rank"], event["start_ts"]))
    return [{**event, "id": number} for number, event in enumerate(events)]


def pieces(table):
    """Each stage in a line: what it does, with micro-batch and length."""
    told = {}
    for row in table.itertuples():
        number = "" if row.microbatch < 0 else row.microbatch
        chunk = "" if row.microbatch < 0 or not row.chunk else "'"
        told.setdefault(row.stage, []).append(f"{SHORT[row.kind]}{number}{chunk}:{row.duration_ns}")
    return [" ".join(line) for line in told.values()]


def run(trace, events, end, **metadata):
    about = {"pipeline": {"count": 2, "stride": 1}, **metadata}
    return registry.run(trace(events, [picture.segment(0, end)], **about), [Schedule()])["schedule"]


def test_passes_lie_between_messages_and_changes_of_direction(trace):
    # Stage 0 sends (S) after each forward pass and receives (T) before each backward one; stage 1 turns around without a message.
    # In stage 0 gradients are reduced beside the optimizer's wait: 2 ns that no pass hides are shown, the rest is bubble.
    events = numbered("""
        tensor  ff.ff....bbb.bbb....oo
        cc      ..S..S..T...T..rrr....
        rank 1
        tensor  ...ffbbbffbbb.......oo
        cc      ..T..............rrr..
    """)
    found = run(trace, events, 24)
    assert pieces(found["schedule"]) == [
        "F0:2 .:1 F1:2 .:4 B0:3 .:1 B1:3 C:2 .:2 O:2 .:2",
        ".:3 F0:2 B0:3 F1:2 B1:3 .:4 C:3 O:2 .:2",
    ]
    stages = found["schedule_stages"]
    assert picture.table(stages) == [
        "stage rank forward_ns backward_ns optimizer_ns collectives_ns bubble_ns bubble_share",
        "0 0 4 6 2 2 10 0.4167",
        "1 1 4 6 2 3 9 0.375",
    ]


def test_parts_turn_with_the_first_backward_and_the_last_forward_pass(trace):
    events = numbered("tensor .ff.bb.ff.bb\n cc ......S...T")
    table = run(trace, events, 12)["schedule"]
    assert " ".join(f"{SHORT[kind]}-{part}" for kind, part in zip(table["kind"], table["part"], strict=True)) == (
        ".-warm-up F-warm-up .-warm-up B-steady .-steady F-steady .-cool-down B-cool-down"
    )


def test_a_pass_that_has_begun_is_cut_where_it_waits_for_its_message(trace):
    # Recomputation needs no gradient: it runs for 2 ns, then the message is waited for until 7, then the rest of the pass runs.
    letters = {**PHASES, "r": {"phase": "recompute", "op": 1}, "T": {"replica_group": "pp:0>1"}}
    events = picture.rows("tensor ff.rr..bb\n cc ...~~~~T", letters)
    for event, number in zip(events, (0, 3, 4, 2), strict=True):
        event["id"] = number
    table = run(trace, events, 9)["schedule"]
    assert pieces(table) == ["F0:2 .:1 B0:2 .:2 B0:2"]


def passes(order):
    """What a recording tells of a stage whose passes are an instruction and a message each: their micro-batches, - for the optimizer."""
    microbatches = [-1 if one == "-" else int(one) for one in order]
    stage = [[2 * place for place in range(len(order))], microbatches]
    return {
        "pipeline": {"count": 2, "stride": 1, "passes": [stage, stage]},
        "numbering": {"rank_stride": 1000, "first_ids": [[0], [0]]},
    }


def test_chunks_of_interleaved_stages_come_back_to_the_same_micro_batch(trace):
    # Two micro-batches go through the first chunk, then the second; backward through the second one first.
    events = numbered("tensor f.f.f.f.b.b.b.b\n cc .S.S.S.S.S.S.S")
    found = run(trace, events, 15, layout={"schedule": "interleaved", "vp": 2}, **passes("01010101"))
    told = found["schedule"]
    assert pieces(told[told["kind"] != "bubble"]) == ["F0:1 F1:1 F0':1 F1':1 B0':1 B1':1 B0:1 B1:1"]


def test_zero_bubble_puts_the_weights_off(trace):
    # Two backward passes follow each other without a message or change of phase: the recording tells them apart.
    letters = {**PHASES, "w": PHASES["b"]}
    events = picture.rows("tensor f.bwo", letters)
    for event, number in zip(events, (0, 2, 4, 6), strict=True):
        event["id"] = number
    message = {**picture.rows("cc .S", PHASES)[0], "id": 1}
    found = run(trace, [*events, message], 6, layout={"schedule": "zero-bubble"}, **passes("000-"))
    assert pieces(found["schedule"]) == ["F0:1 .:1 B0:1 W0:1 O:1 .:1"]


@pytest.mark.parametrize("about", [{"pipeline": {"count": 1, "stride": 1}}, {}])
def test_a_job_without_a_pipeline_has_no_schedule(trace, about):
    opened = trace(picture.rows("tensor aa"), [picture.segment(0, 2)], **about)
    assert registry.run(opened, [Schedule()])["schedule"]["schedule"].empty
