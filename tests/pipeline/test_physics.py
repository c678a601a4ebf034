"""A small transformer on machines that differ in one thing: sums, memory and times are what physics allows."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from neuronprof import pipeline
from neuronprof.compile.lower import compile_graph
from neuronprof.compile.memory import peak_levels
from neuronprof.distribute.data_parallel import Replicas, data_parallel
from neuronprof.graph.flops import segment_work
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ops import work
from neuronprof.hardware.load import load_chip
from neuronprof.pipeline import written
from neuronprof.program import DMA_OPCODES, Opcode, Queue
from neuronprof.simulate.cluster import Cluster
from neuronprof.simulate.job import Job
from neuronprof.terms import PHASES, ROLES, Phase, Role

pytest.importorskip("torch", reason="needs the extra 'torch'")

WIDTH, LAYERS, TOKENS, VOCABULARY = 256, 2, 2048, 512

SCRIPT = """
import sys, torch, torch.nn as nn
from torch.utils.checkpoint import checkpoint
width, layers, tokens, vocabulary = (int(a) for a in sys.argv[1:5])
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)
    def forward(self, x):
        x = self.token(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if "checkpoint" in sys.argv else block(x)
        return self.head(x)
model = Model().to("neuron")
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for _ in range(4):
    x = torch.randint(0, vocabulary, (tokens,), device="neuron")
    nn.functional.cross_entropy(model(x), x).backward()
    optimizer.step()
    optimizer.zero_grad()
"""
# Embedding and head; in each layer two matrices, their biases, and the norm.
PARAMETERS = 2 * VOCABULARY * WIDTH + LAYERS * (2 * 4 * WIDTH * WIDTH + 4 * WIDTH + WIDTH + 2 * WIDTH)


@dataclass(frozen=True)
class Ran:
    graph: object
    program: object
    run: object

    @property
    def step(self):
        return self.run.end - self.run.begin

    def phase(self, name):
        return self.graph.phase[self.program.op] == PHASES.index(name)

    def moved(self, *opcodes, where=True):
        return int(self.program.nbytes[np.isin(self.program.opcode, opcodes) & where].sum())


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    from neuronprof.capture.script import CaptureOptions, record_script

    script = tmp_path_factory.mktemp("physics") / "train.py"
    script.write_text(SCRIPT)
    recorded = {}

    def of(tokens=TOKENS, *arguments):
        if (tokens, *arguments) not in recorded:
            argv = [*map(str, (WIDTH, LAYERS, tokens, VOCABULARY)), *arguments]
            outcome = record_script(str(script), argv, CaptureOptions(values="none", steps=2, warmup=1))
            recorded[tokens, *arguments] = outcome.recording
        return recorded[tokens, *arguments]

    return of


def ran(recording, chip="trainium2", ranks=1, step=0):
    chip = load_chip(chip) if isinstance(chip, str) else chip
    segment = [s for s in recording.segments if s.kind == "step"][step]
    graph = data_parallel(
        recording.graph.slice(segment.start, segment.stop), Replicas(ReplicaGroup("dp", ((ranks, 1),))), 1 << 20
    )
    program = compile_graph(graph, chip, 2)
    return Ran(graph, program, Cluster(Job(chip, 2, ranks)).run([program]))


def test_flops_of_every_phase(record):
    # Forward: 2 tokens (8 width^2 layers + width vocabulary); backward twice that: the embedding's gradient is no product.
    one = ran(record())
    forward = 2 * TOKENS * (8 * WIDTH * WIDTH * LAYERS + WIDTH * VOCABULARY)
    tensor = one.program.opcode == Opcode.MATMUL
    assert one.program.flops[tensor & one.phase(Phase.FORWARD)].sum() == forward
    assert one.program.flops[tensor & one.phase(Phase.BACKWARD)].sum() == 2 * forward
    counted = segment_work(one.graph)
    assert (counted["model_flops"], counted["hardware_flops"]) == (3 * forward, 3 * forward)


def test_checkpointing_computes_again_and_holds_less(record):
    # Each layer computes `up` and `down` again, or at least what backward needs of them: no less than `up`.
    plain, saved = ran(record()), ran(record(TOKENS, "checkpoint"))
    up = 2 * TOKENS * 4 * WIDTH * WIDTH * LAYERS
    work_of = segment_work(saved.graph)
    assert up <= work_of["hardware_flops"] - segment_work(plain.graph)["hardware_flops"] <= 2 * up
    assert work_of["model_flops"] == segment_work(plain.graph)["model_flops"]
    held = {True: born_in_forward(saved), False: born_in_forward(plain)}
    assert held[True] < 0.6 * held[False]


def born_in_forward(one):
    """Bytes of activations that live from forward into backward."""
    phases = one.graph.phase
    forward = PHASES.index(Phase.FORWARD)
    return sum(
        b.nbytes
        for b in one.graph.buffers
        if b.role is Role.ACTIVATIONS and b.birth >= 0 and phases[b.birth] == forward and phases[b.death] != forward
    )


def test_memory_by_hand(record):
    peak = peak_levels(ran(record()).program)
    assert record().parameters == PARAMETERS
    assert peak["weights"] == 4 * PARAMETERS
    # AdamW keeps two moments as large as the weights, and a step counter a tensor.
    assert 8 * PARAMETERS <= peak["optimizer_state"] <= 8 * PARAMETERS + 4 * 16


def test_gradients_appear_in_backward(record):
    one = ran(record())
    gradients = [(at, level) for at, role, level in one.program.memory.tolist() if role == ROLES.index(Role.GRADIENTS)]
    first = next(at for at, level in gradients if level)
    assert one.phase(Phase.BACKWARD)[first]
    assert max(level for _, level in gradients) == 4 * PARAMETERS


def test_the_optimizer_moves_what_it_must(record):
    # AdamW reads weights, gradients and two moments and writes all but the gradients; some may still stand in SBUF, no more is moved.
    one = ran(record(), "trainium1")
    where = one.phase(Phase.OPTIMIZER)
    assert one.moved(Opcode.DMA_STORE, where=where) == pytest.approx(12 * PARAMETERS, rel=1e-3)
    loaded = one.moved(Opcode.DMA_LOAD, Opcode.SPILL_RELOAD, where=where)
    assert 8 * PARAMETERS <= loaded <= 16 * PARAMETERS * 1.001


def test_traffic_is_between_once_and_every_operator_for_itself(record):
    one = ran(record(8 * TOKENS))
    every = sum(work(one.graph.signatures[s]).nbytes for s in one.graph.signature.tolist())
    moved = one.moved(*DMA_OPCODES)
    # At least: weights and moments, read and written, and each activation that backward needs, written and read.
    once = 2 * 12 * PARAMETERS + 2 * born_in_forward(one)
    assert 0.8 * once < moved < every


def test_gradients_are_all_reduced_once(record):
    assert ran(record(), ranks=8).moved(Opcode.COLLECTIVE) == 4 * PARAMETERS


@pytest.mark.parametrize(
    ("section", "name"), [("package", "hbm_bandwidth"), ("tensor", "clock"), ("vector", "clock"), ("dma", "bandwidth")]
)
def test_half_a_resource_costs_time_but_never_more_than_double(record, section, name):
    whole = load_chip("trainium2")
    part = getattr(whole, section)
    half = replace(whole, **{section: replace(part, **{name: getattr(part, name) / 2})})
    # Four ranks of two cores share the chip's HBM; the gradients' way over the links stays as it is.
    before, after = ran(record(8 * TOKENS), whole, 4).step, ran(record(8 * TOKENS), half, 4).step
    assert before <= after <= 2 * before
    if (section, name) != ("package", "hbm_bandwidth"):
        assert after > 1.02 * before


def test_twice_the_batch_takes_about_twice_the_time(record):
    assert 1.7 < ran(record(16 * TOKENS)).step / ran(record(8 * TOKENS)).step < 2.1


def test_more_ranks_take_no_less_time_and_newer_chips_no_more(record):
    steps = [ran(record(8 * TOKENS), "trainium4", n).step for n in (1, 4, 64)]
    assert steps == sorted(steps)
    old, new = (ran(record(8 * TOKENS), chip).step for chip in ("trainium3", "trainium4"))
    assert 1 < old / new < 6


def test_nothing_starts_before_what_it_needs(record):
    one = ran(record(8 * TOKENS), ranks=8)
    program, start, end = one.program, one.run.timing(0).start, one.run.timing(0).end
    targets = np.repeat(np.arange(len(program)), np.diff(program.deps_ptr))
    assert (start[targets] >= end[program.deps]).all()
    for queue in Queue:
        rows = np.flatnonzero(program.queue == queue)
        assert (start[rows][1:] >= end[rows][:-1]).all()


def test_the_next_layer_is_loaded_while_this_one_computes(record):
    # In forward, the first weights of each operator set off while the engines still work on operators before it.
    one = ran(record(8 * TOKENS))
    program, start, end = one.program, one.run.timing(0).start, one.run.timing(0).end
    computing = np.flatnonzero(program.queue <= Queue.GPSIMD)
    later = (program.op > program.op[program.opcode == Opcode.MATMUL].min()) & one.phase(Phase.FORWARD)
    weights = np.flatnonzero((program.queue == Queue.DMA_WEIGHTS) & later)
    _, first = np.unique(program.op[weights], return_index=True)
    assert len(first) >= 2 * LAYERS  # two products in each, the embedding in front, the head behind
    for w in weights[first]:
        assert start[w] < end[computing[program.op[computing] < program.op[w]]].max()


def test_equal_steps_take_equal_times_and_equal_jobs_write_equal_bytes(record, tmp_path):
    recording = record()
    options = pipeline.Options(output=tmp_path / "t.parquet", chip="trainium2", quiet=True)
    first, second = (written.write_trace(recording, replace(options, output=tmp_path / n)) for n in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    events = pd.read_parquet(first)
    spans = events[events["engine"] == "tensor"].groupby("step", observed=True)["duration_ns"].agg(["sum", "count"])
    assert len(spans) == 2
    assert spans["count"].nunique() == 1
    assert np.ptp(spans["sum"]) <= spans["count"][0]  # start and end of each event are rounded to nanoseconds
