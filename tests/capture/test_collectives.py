"""What ranks that a script distributes itself say to each other, against closed forms: kind, bytes, group, order, waits."""

import textwrap
from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from neuronprof.capture.script import CaptureOptions, record_script  # noqa: E402
from neuronprof.terms import PHASES, Role  # noqa: E402

BEGIN = """
import os, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
dist.init_process_group("nccl")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
"""


@pytest.fixture
def step(tmp_path):
    """Records a script and returns its step after the warm-up: a graph, and the recording."""

    def record(text, world, warmup=1):
        script = tmp_path / "train.py"
        script.write_text(BEGIN + textwrap.dedent(text))
        recording = record_script(str(script), [], CaptureOptions(steps=1, warmup=warmup, world_size=world)).recording
        segment = recording.segments[-1]
        return recording.graph.slice(segment.start, segment.stop), recording

    return record


def _calls(graph):
    """(phase, kind, bytes, group of rank 0) of each collective, counted."""
    return Counter(
        (str(PHASES[graph.phase[op]]), str(call.kind), call.nbytes, call.group.text(0))
        for op, call in graph.collectives.items()
    )


def _course(graph, names):
    """The operators of a step, in order, that have a letter in names."""
    found = (names.get(graph.signatures[s].name.split(".")[1]) for s in graph.signature.tolist())
    return "".join(letter for letter in found if letter)


def test_ddp_reduces_bucket_by_bucket_behind_backward_and_waits_at_its_end(step):
    graph, _ = step(
        """
        model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(4)]).to(device)
        model = nn.parallel.DistributedDataParallel(model, device_ids=[device.index], bucket_cap_mb=0.03)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            model(torch.randn(8, 64, device=device)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        """,
        world=8,
        warmup=2,  # in its second step DDP broadcasts the order in which it saw the gradients
    )
    weight = 64 * 64 * 4  # two of them fill a bucket of 0.03 MiB
    assert _calls(graph) == {("backward", "AllReduce", 2 * weight, "dp:0-7"): 2}
    # Products of the layers from the last one (the input has no gradient), a bucket after every two, then both waits, then the copies out.
    letters = {"mm": "m", "allreduce_": "R", "wait": "w"}
    assert _course(graph, letters).removeprefix("mmmm") == "mmmmRmmmRww"


@pytest.mark.parametrize("policy", ["", ", mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32)"])
def test_fully_shard_gathers_twice_and_scatters_once(step, policy):
    graph, recording = step(
        f"""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        model = nn.Sequential(*[nn.Linear(128, 128, bias=False) for _ in range(3)]).to(device)
        for layer in model:
            fully_shard(layer{policy})
        fully_shard(model{policy})
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(2):
            model(torch.randn(8, 128, device=device)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        """,
        world=8,
    )
    layer = 128 * 128 * 4
    gathered = layer // 2 if policy else layer
    assert _calls(graph) == {
        ("forward", "AllGather", gathered, "dp:0-7"): 3,
        ("backward", "AllGather", gathered, "dp:0-7"): 3,
        ("backward", "ReduceScatter", layer, "dp:0-7"): 3,
    }
    # Backward gathers a layer ahead of the one that computes, and waits for a layer's weights before it does; gradients are waited for at
    # the end. Each backward but the first layer's has two products.
    letters = {"mm": "m", "_allgather_base_": "G", "_reduce_scatter_base_": "S", "wait": "w"}
    assert _course(graph, letters) == "GmGmGm" + "GG" + "mmS" + "wG" + "mmS" + "w" + "mS" + "www"
    held = {
        role: sum(b.nbytes for b in graph.buffers if b.role is role) for role in (Role.WEIGHTS, Role.OPTIMIZER_STATE)
    }
    assert held == {Role.WEIGHTS: 3 * layer // 8, Role.OPTIMIZER_STATE: 2 * 3 * layer // 8 + 3 * 4}
    assert recording.parameters == 3 * 128 * 128


def test_hybrid_sharding_reduces_a_shard_over_the_replicas(step):
    graph, recording = step(
        """
        from torch.distributed.fsdp import fully_shard
        mesh = init_device_mesh("cuda", (4, 2), mesh_dim_names=("replicate", "shard"))
        model = nn.Linear(128, 128, bias=False).to(device)
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(torch.randn(8, 128, device=device)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        """,
        world=8,
    )
    layer = 128 * 128 * 4
    assert recording.axes == {"replicate": 4, "shard": 2}
    assert _calls(graph) == {
        ("forward", "AllGather", layer, "shard:0-1"): 1,
        ("backward", "ReduceScatter", layer, "shard:0-1"): 1,
        ("backward", "AllReduce", layer // 2, "replicate:0-6:2"): 1,
    }


def test_sequence_parallelism_gathers_and_scatters_activations(step):
    graph, recording = step(
        """
        from torch.distributed.tensor import Shard
        from torch.distributed.tensor.parallel import (
            ColwiseParallel, PrepareModuleInput, RowwiseParallel, SequenceParallel, parallelize_module
        )
        mesh = init_device_mesh("cuda", (2, 4), mesh_dim_names=("dp", "tp"))
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)
            def forward(self, x):
                return self.down(torch.relu(self.up(self.norm(x))))
        model = nn.Sequential(Block(), Block()).to(device)
        for block in model:
            parallelize_module(block, mesh["tp"], {
                "norm": SequenceParallel(),
                "up": ColwiseParallel(input_layouts=Shard(1)),
                "down": RowwiseParallel(output_layouts=Shard(1)),
            })
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        from torch.distributed.tensor import DTensor
        for _ in range(2):
            x = DTensor.from_local(torch.randn(2, 32 // 4, 64, device=device), mesh["tp"], [Shard(1)])
            model(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        """,
        world=8,
    )
    activations = 2 * 32 * 64 * 4
    calls = _calls(graph)
    assert recording.axes == {"dp": 2, "tp": 4}
    # Megatron: a gather and a scatter a block forward, and the same backward, where the gradient of the row-parallel product is gathered
    # once and that of the column-parallel one scattered.
    large = {key: n for key, n in calls.items() if key[2] == activations}
    assert large == {
        (phase, kind, activations, "tp:0-3"): 2
        for phase in ("forward", "backward")
        for kind in ("AllGather", "ReduceScatter")
    }


def test_experts_exchange_uneven_numbers_of_tokens(step):
    graph, _ = step(
        """
        groups = [dist.new_group([4 * i + j for j in range(4)]) for i in range(2)]
        tokens = torch.randn(16, 32, device=device, requires_grad=True)
        received = torch.empty(18, 32, device=device)
        gate = nn.Linear(32, 32).to(device)
        optimizer = torch.optim.SGD(gate.parameters(), lr=0.1)
        for _ in range(2):
            sent = gate(tokens)
            work = dist.all_to_all_single(received, sent.detach(), [6, 4, 4, 4], [10, 2, 2, 2], group=groups[0], async_op=True)
            own = gate(tokens)
            work.wait()
            (sent.sum() + own.sum()).backward()
            optimizer.step()
        """,
        world=8,
    )
    (call,) = graph.collectives.values()
    assert (str(call.kind), call.nbytes, call.group.text(0)) == ("AllToAll", 16 * 32 * 4, "ep:0-3")
    assert call.uneven == 10 / 4  # the first rank gets 10 of the 16 tokens, 4 are the mean
    assert _course(graph, {"addmm": "m", "alltoall_base_": "X", "wait": "w"}) == "mXmw"


def test_objects_barriers_and_a_mesh_of_five_axes_over_32768_ranks(step):
    graph, recording = step(
        """
        mesh = init_device_mesh("cuda", (16, 4, 8, 8, 8), mesh_dim_names=("pp", "dp", "ep", "cp", "tp"))
        found = [None] * 8
        dist.all_gather_object(found, {"rank": dist.get_rank()}, group=mesh["tp"].get_group())
        assert found == [{"rank": 0}] * 8
        said = [{"seed": 1}]
        dist.broadcast_object_list(said, src=0)
        model = nn.Linear(8, 8).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(torch.randn(2, 8, device=device)).sum().backward()
            for axis in ("cp", "dp"):
                dist.all_reduce(model.weight.grad, group=mesh[axis].get_group())
            dist.barrier()
            optimizer.step()
        """,
        world=32_768,
    )
    assert recording.axes == {"pp": 16, "dp": 4, "ep": 8, "cp": 8, "tp": 8}
    assert [(str(c.kind), c.group.text(0)) for c in graph.collectives.values()] == [
        ("AllReduce", "cp:0-56:8"),
        ("AllReduce", "dp:0-1536:512"),
        ("Barrier", "world:0-32767"),
    ]


def test_a_ring_of_messages_is_one_permutation_a_round(step):
    graph, recording = step(
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        project = nn.Linear(32, 32).to(device)
        optimizer = torch.optim.SGD(project.parameters(), lr=0.1)
        for _ in range(2):
            keys = project(torch.randn(16, 32, device=device))
            passed, total = keys.detach(), keys
            for _ in range(world - 1):
                received = torch.empty_like(passed)
                messages = [
                    dist.P2POp(dist.isend, passed, (rank + 1) % world), dist.P2POp(dist.irecv, received, (rank - 1) % world)
                ]
                for work in dist.batch_isend_irecv(messages):
                    work.wait()
                passed = received
                total = total + passed
            total.sum().backward()
            optimizer.step()
        """,
        world=4,
    )
    assert recording.axes == {"cp": 4}
    assert recording.stages == ()  # all ranks run the same program: no other one was run
    assert [(str(c.kind), c.nbytes, c.group.text(0)) for c in graph.collectives.values()] == [
        ("Permute", 16 * 32 * 4, "cp:0-3")
    ] * 3
