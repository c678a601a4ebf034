"""A script of pipeline stages: each stage is recorded by a process of its own, and what one sends the next one receives."""

import textwrap
import threading
from multiprocessing import Pipe

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from neuronprof import api  # noqa: E402
from neuronprof.capture.distributed.groups import Book  # noqa: E402
from neuronprof.capture.distributed.hub import Hub, LostPeerError  # noqa: E402
from neuronprof.capture.distributed.peers import Job, Peers  # noqa: E402
from neuronprof.capture.script import CaptureOptions, record_script  # noqa: E402
from neuronprof.distribute.recorded import stage_plan  # noqa: E402
from neuronprof.pipeline.options import Options  # noqa: E402
from neuronprof.pipeline.written import write_trace  # noqa: E402
from neuronprof.terms import PHASES  # noqa: E402

# Three stages of one linear layer each, 64 features wide, on two replicas; four micro-batches of 8 rows.
SCRIPT = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
dist.init_process_group("nccl")
mesh = init_device_mesh("cuda", (3, 2), mesh_dim_names=("pp", "dp"))
stage = mesh["pp"].get_local_rank()
part = torch.nn.Linear(64, 64 if stage < 2 else 16).cuda()
optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
schedule = Schedule1F1B(
    PipelineStage(part, stage, 3, torch.device("cuda"), group=mesh["pp"].get_group()), 4, loss_fn=torch.nn.functional.mse_loss
)
for _ in range(2):
    if stage == 0: schedule.step(torch.randn(32, 64, device="cuda"))
    elif stage == 2: schedule.step(target=torch.randn(32, 16, device="cuda"))
    else: schedule.step()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    script = tmp_path_factory.mktemp("pipeline") / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    return record_script(str(script), [], CaptureOptions(steps=1, world_size=6)).recording


def _course(stage):
    """What a stage does in a step: F and B where it computes a micro-batch, >n and <n where it sends to or hears from stage n."""
    graph, segment = stage.graph, stage.segments[0]
    found = []
    for op in range(segment.start, segment.stop):
        name = graph.signatures[graph.signature[op]].name
        if op in graph.collectives:
            call = graph.collectives[op]
            found.append(f"{'>' if call.kind == 'Send' else '<'}{call.peer}")
        elif name == "aten.addmm.default":
            found.append("F")
        elif name == "aten.mm.default" and found[-1] != "B":  # two products a backward: of the input and of the weight
            found.append("B")
    return " ".join(found)


def test_each_stage_runs_its_own_course_of_1f1b(recording):
    # Stage s warms up with 3 - s forwards. What it receives it waits for before the pass; in the steady part what goes back to the stage
    # before and what comes from there is one batch, in which the receive of the next forward follows the send of the last backward.
    assert [_course(stage) for stage in recording.stages] == [
        "F >1 F >1 F >1 <1 B F >1 <1 B <1 B <1 B",
        "<0 F >2 <0 F >2 <2 B >0 <0 F >2 <2 B >0 <0 F >2 <2 B >0 <2 B >0",
        "<1 F B >1 <1 F B >1 <1 F B >1 <1 F B >1",
    ]
    assert (recording.world, recording.axes, recording.pipeline) == (6, {"pp": 3, "dp": 2}, (3, 2))
    assert recording.parameters == 2 * (64 * 64 + 64) + (64 * 16 + 16)


def test_a_message_has_the_size_module_and_phase_of_what_it_carries(recording):
    graph = recording.stages[1].graph
    found = {
        (call.kind, call.nbytes, graph.modules[graph.module[op]], PHASES[graph.phase[op]])
        for op, call in graph.collectives.items()
    }
    of_a_microbatch = 8 * 64 * 4
    assert found == {
        (kind, of_a_microbatch, "Linear", phase) for kind in ("Send", "Recv") for phase in ("forward", "backward")
    }


def test_what_one_stage_sends_the_next_one_receives(recording, tmp_path):
    trace = api.load(write_trace(recording, Options(output=tmp_path / "trace.parquet", quiet=True)))
    events = trace.events[trace.events.name.isin(["Send", "Recv"]) & (trace.events.engine == "cc")]
    messages = events.groupby([events.collective, events["rank"] % 2])
    ends = [sorted(zip(e["name"], e["rank"], strict=True)) for _, e in messages]
    # Two neighbours, two replicas, four micro-batches forward and back.
    assert sorted(map(tuple, ends)) == sorted(
        (("Recv", receiver + replica), ("Send", sender + replica))
        for sender, receiver in ((0, 2), (2, 4), (2, 0), (4, 2))
        for replica in (0, 1)
        for _ in range(4)
    )
    waits = events[events.wait_for == "peer"].groupby("rank").wait_ns.sum()
    assert set(waits[waits > 0].index) == set(range(6))  # the bubble: each stage has one


def test_a_stage_that_fails_ends_the_others_with_one_sentence(tmp_path, capfd):
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "if dist.get_rank() == 1: raise ValueError('a mistake in stage 1')\n"
        "dist.recv(torch.ones(4), 1)\n"
    )
    outcome = record_script(str(script), [], CaptureOptions(world_size=2))
    assert (outcome.recording, outcome.exit_code, outcome.ended_by) == (None, 1, "error")
    said = capfd.readouterr().err.splitlines()
    assert "ValueError: a mistake in stage 1" in said[-2]
    assert (
        said[-1] == f"neuronprof: {script}:4: Rank 0 waits for a message from rank 1, which ended without sending it."
    )


# --- the hub


@pytest.fixture
def two():
    """Two ranks and their hub."""
    ends = [Pipe(), Pipe()]
    books = [Book(world=2, rank=rank) for rank in (0, 1)]
    job = Job("train.py", (), CaptureOptions(), ".", {}, ())
    hub = threading.Thread(target=Hub(lambda *_: None, {rank: ends[rank][1] for rank in (0, 1)}).serve)
    hub.start()
    yield [Peers(job, book, end[0]) for book, end in zip(books, ends, strict=True)], [end[0] for end in ends]
    for end, _ in ends:
        end.close()
    hub.join()


def test_messages_wait_for_who_asks_for_them_in_the_order_in_which_they_were_sent(two):
    (zero, one), _ = two
    zero.put(1, "activations 0", b"a")
    zero.put(1, "activations 1", None)
    assert [one.get(0, "activations 1"), one.get(0, "activations 0")] == [None, b"a"]


def test_a_message_from_a_rank_that_has_ended_is_an_error(two):
    (zero, _), ends = two
    ends[1].close()
    with pytest.raises(LostPeerError) as error:
        zero.get(1, "activations 0")
    assert str(error.value) == "Rank 0 waits for a message from rank 1, which ended without sending it."


def test_ranks_that_wait_for_each_other_are_an_error(two):
    (zero, one), _ = two
    heard = []

    def ask():
        try:
            one.get(0, "gradients 0")
        except LostPeerError as error:
            heard.append(str(error))

    other = threading.Thread(target=ask)
    other.start()
    with pytest.raises(LostPeerError) as error:
        zero.get(1, "activations 0")
    other.join()
    sentence = "All ranks wait for messages that nobody sends: rank 0 for rank 1, rank 1 for rank 0."
    assert [str(error.value), *heard] == [sentence, sentence]


# --- cut into micro-batches


def _grows(graph):
    """Bytes that a graph makes less those that it frees."""
    made = sum(b.nbytes for b in graph.buffers if b.birth >= 0)
    return made - sum(b.nbytes for b in graph.buffers if b.death >= 0)


def test_micro_batches_that_run_the_same_operators_are_one_chunk(recording):
    stage = recording.stages[1]
    segment = stage.segments[0]
    graph = stage.graph.slice(segment.start, segment.stop)
    plan = stage_plan(graph)
    pieces = [plan.chunks[chunk] for chunk, _ in plan.order]
    # F F B F B F B B and the optimizer: one kind of forward; the first backward makes gradients, later ones add to them.
    forwards = [plan.order[at][0] for at in (0, 1, 3, 5)]
    assert (len(plan.order), forwards, plan.order[-1][1]) == (9, [0, 0, 0, 0], -1)
    assert plan.order[2][0] != plan.order[4][0]
    names = [piece.signatures[s].name for piece in pieces for s in piece.signature]
    assert names == [graph.signatures[s].name for s in graph.signature]
    assert sum(map(_grows, pieces)) == _grows(graph.piece(0, len(graph)))
