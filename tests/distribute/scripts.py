"""The small GPT, distributed by PyTorch's own means: scripts that neuronprof records with four ranks."""

from pathlib import Path

from neuronprof import pipeline
from neuronprof.graph.ir import Graph

RANKS = 4
_HEAD = """
import sys
sys.path.insert(0, {folder!r})
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel, PrepareModuleInput, RowwiseParallel, SequenceParallel, loss_parallel, parallelize_module)
from recorded import *
dist.init_process_group("gloo")
torch.manual_seed(0)
model = GPT()
"""

TENSOR_PARALLEL = """
between = Shard(1) if {sequence} else Replicate()
mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
whole = dict(input_layouts=between, desired_input_layouts=Replicate())
plan = dict(tokens=RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
            head=ColwiseParallel(input_layouts=between, output_layouts=Shard(-1), use_local_output=False))
parallelize_module(model, mesh, plan | (dict(norm=SequenceParallel()) if {sequence} else {{}}))
for block in model.blocks:
    plan = {{"attention": PrepareModuleInput(**whole), "up": ColwiseParallel(input_layouts=between)}}
    plan |= {{f"attention.{{name}}": ColwiseParallel() for name in "qkv"}}
    plan |= {{name: RowwiseParallel(output_layouts=between) for name in ("attention.out", "down")}}
    parallelize_module(block, mesh, plan | ({{"norm1": SequenceParallel(), "norm2": SequenceParallel()}} if {sequence} else {{}}))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=False)
for _ in range(3):
    tokens = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1))
    logits = model(tokens[:, :-1])
    with loss_parallel():
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()
"""

FULLY_SHARD = """
mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("dp",))
for block in model.blocks:
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
step = training(model)
for _ in range(3):
    step()
"""


def capture(folder: Path, body: str, **values: bool) -> Graph:
    """The graph of rank 0's second step."""
    script = folder / "train.py"
    script.write_text((_HEAD + body).format(folder=str(Path(__file__).parent), **values))
    options = pipeline.Options(world_size=RANKS, values="none", steps=1, warmup=1)
    recording = pipeline.capture(script, (), options).recording
    segment = recording.segments[-1]
    return recording.graph.slice(segment.start, segment.stop)
