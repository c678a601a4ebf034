"""Training scripts with a fault each, and without it; a fault of the machine that `record` cannot make, made by running a trace again."""

from dataclasses import dataclass, field

import numpy as np

from neuronprof.analyze import changes, whatif
from neuronprof.trace import schema
from neuronprof.trace.writer import TraceWriter

HEAD = """
import torch
from torch import nn
torch.manual_seed(0)
"""
MLP = (
    HEAD
    + """
model = nn.Sequential(*[nn.Linear({width}, {width}) for _ in range({layers})]).to("neuron")
optimizer = torch.optim.{optimizer}(model.parameters(), lr=0.1)
for _ in range(3):
    x = torch.ones({batch}, {width}, device="{source}").to("neuron")
    with torch.autocast("neuron", dtype=torch.bfloat16, enabled={bf16}):
        loss = model(x).square().mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    {then}
"""
)
ACCUMULATED = (
    HEAD
    + """
import torch.distributed as dist
from contextlib import nullcontext
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
model = DistributedDataParallel(nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(4)]).to("neuron"))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    for part in range(4):
        with nullcontext() if {always} or part == 3 else model.no_sync():
            model(torch.ones(256, 1024, device="neuron")).square().mean().backward()
    optimizer.step()
"""
)
ATTENTION = (
    HEAD
    + """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear({width}, 3 * {width}), nn.Linear({width}, {width})
    def forward(self, x):
        split = (*x.shape[:2], {heads}, -1)
        q, k, v = (part.view(split).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if {fused}:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-1, -2) * 0.1, -1) @ v
        return x + self.out(y.transpose(1, 2).reshape(x.shape))
model = nn.Sequential(*[Block() for _ in range({layers})]).to("neuron").to(torch.bfloat16)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    x = torch.ones({batch}, 1024, {width}, device="neuron", dtype=torch.bfloat16)
    optimizer.zero_grad(); model(x).square().mean().backward(); optimizer.step()
"""
)
REORDERED = (
    HEAD
    + """
class Block(nn.Linear):
    def forward(self, x):
        return super().forward(x{reordered})
model = nn.Sequential(*[Block(1024, 1024) for _ in range(4)]).to("neuron").to(torch.bfloat16)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    x = torch.ones(4096, 1024, device="neuron", dtype=torch.bfloat16)
    optimizer.zero_grad(); model(x).square().mean().backward(); optimizer.step()
"""
)
HEAVY_HEAD = (
    HEAD
    + """
layers = [nn.Embedding(4096, 1024), *[nn.Linear(1024, 1024) for _ in range(8)], nn.Linear(1024, 4096)]
model = nn.Sequential(*layers).to("neuron").to(torch.bfloat16)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    x = torch.zeros(16384, dtype=torch.long, device="neuron")
    optimizer.zero_grad(); model(x).square().mean().backward(); optimizer.step()
"""
)
NARROW = (
    HEAD
    + """
model = nn.Sequential(*[nn.Linear(128, 128) for _ in range(8)]).to("neuron")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    for part in range({parts}):
        model(torch.ones(2**20 // {parts}, 128, device="neuron")).square().mean().backward()
    optimizer.step()
"""
)
GATED = (
    HEAD
    + """
class Block(nn.Linear):
    def forward(self, x):
        a, b = super().forward(x).{split}
        return a * b
model = nn.Sequential(*[Block(64, 128) for _ in range(4)]).to("neuron").to(torch.bfloat16)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    x = torch.ones(2**20, 64, device="neuron", dtype=torch.bfloat16)
    optimizer.zero_grad(); model(x).square().mean().backward(); optimizer.step()
"""
)
PROJECTED = (
    HEAD
    + """
model = nn.ModuleList([nn.Linear(64, {columns}) for _ in range(384 // {columns})]).to("neuron").to(torch.bfloat16)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    x = torch.ones(2**21, 64, device="neuron", dtype=torch.bfloat16)
    optimizer.zero_grad(); sum(part(x).square().mean() for part in model).backward(); optimizer.step()
"""
)


def mlp(**changed):
    """A stack of linear layers in float32, its batch made on the device."""
    plain = {
        "width": 1024,
        "layers": 4,
        "batch": 1024,
        "bf16": False,
        "then": "",
        "optimizer": "SGD",
        "source": "neuron",
    }
    return MLP.format(**plain | changed)


def accumulated(always):
    """Four micro-batches a step; gradients are reduced always, or after the last."""
    return ACCUMULATED.format(always=always)


def attention(**changed):
    """Blocks of attention alone, with heads of 128."""
    return ATTENTION.format(**{"width": 512, "heads": 4, "layers": 2, "batch": 2, "fused": True} | changed)


def reordered(text):
    """Linear layers on operands that go through an expression first."""
    return REORDERED.format(reordered=text)


def narrow(parts):
    """Narrow layers on a million rows, all of them at once or in parts that fit SBUF."""
    return NARROW.format(parts=parts)


def gated(split):
    """Layers whose two halves are multiplied: sliced out of each row, or one after the other."""
    return GATED.format(split=split)


def projected(columns):
    """Several projections of one tensor, so many columns each, 384 in all."""
    return PROJECTED.format(columns=columns)


@dataclass(frozen=True)
class Planted:
    """A fault and its clean twin.

    script, options: with the fault; twin, cure: what of them differs without it. within: what the promised gain may be off from that of
    the twin's recording; careful: the rule may promise as little as a third of it.
    """

    rule: str
    script: str
    twin: str = ""
    options: dict = field(default_factory=dict)
    cure: dict = field(default_factory=dict)
    within: float = 0.1
    careful: bool = False

    @property
    def clean(self):
        """Script and options of the twin."""
        return self.twin or self.script, self.options | self.cure


SCORES = attention(heads=8, fused=False)
DEEP = attention(width=1024, layers=8, batch=64)
ADAM = mlp(optimizer="AdamW")
WIDE = mlp(width=2048, layers=8, batch=4096, bf16=True)
LONG = mlp(width=2048, layers=8, batch=16384, bf16=True)
SMALL = mlp(width=256, layers=16, batch=4096)
H100 = {"dp": 32, "chip": "h100-80gb"}  # two hosts
TWO_STAGES = {"pp": 2, "microbatches": 8}
PLANTED = [
    Planted("host-sync", mlp(then="print(loss.item())"), mlp()),
    Planted("input-copies", mlp(source="cpu"), mlp()),
    Planted("float32-products", mlp(batch=4096), mlp(batch=4096, bf16=True)),
    Planted("unsharded-optimizer", ADAM, options={"dp": 8}, cure={"zero": 1}, careful=True),
    Planted("late-gradient-sync", WIDE, options={"dp": 8, "grad_sync": "after"}, cure={"grad_sync": "overlapped"}, within=0.2),
    Planted("small-collectives", SMALL, options={"dp": 8, "bucket_bytes": 1}, cure={"bucket_bytes": 25 << 20}, within=0.15),
    Planted("sync-every-microbatch", accumulated(True), accumulated(False), {"world_size": 8}, within=0.2),
    Planted("exposed-weight-gather", LONG, options={"dp": 8, "zero": 3, "prefetch": 0}, cure={"prefetch": 1}),
    Planted("launch-bound", attention(), options={"chip": "h100-80gb", "eager": True}, cure={"eager": False}, careful=True),
    Planted("unfused-attention", SCORES, attention(heads=8)),
    Planted("layout-copies", reordered(".t().contiguous().t()"), reordered(""), within=0.25),
    Planted("recompute-with-room", attention(), options={"recompute": "full"}, cure={"recompute": "none"}),
    Planted("spills", narrow(1), narrow(32), careful=True),
    Planted("sbuf-reuse", projected(64), projected(384), careful=True),
    Planted("small-transfers", gated("chunk(2, -1)"), gated("view(2, -1, 64).unbind(0)")),
    Planted("pipeline-bubble", DEEP, options={"pp": 4, "microbatches": 4}, cure={"microbatches": 16}, within=0.2),
    Planted("stage-imbalance", HEAVY_HEAD, options={**TWO_STAGES, "even_stages": True}, cure={"even_stages": False}, within=0.2),
    Planted("degraded-link", mlp(), options={"dp": 16, "links": {1: 0.25}}, cure={"links": {}}, within=0.01),
    Planted("slow-chip", mlp(), options={"dp": 8, "slow_chips": {1: 1.5}}, cure={"slow_chips": {}}, within=0.01),
    Planted("throttled-core", mlp(), options={"dp": 8, "throttled": {5: 2.0}}, cure={"throttled": {}}, within=0.01),
    Planted("late-host", mlp(bf16=True), options={**H100, "late_hosts": {1: 2e-4}}, cure={"late_hosts": {}}, within=0.01),
]  # fmt: skip


def run_slower(whole, path, slow, times):
    """Writes the typical step of a trace as it would have been with some rows slower; slow: from the step's events to a mask of them."""
    step = whole.step
    run = changes.run(step, whole.context, [lambda draft: draft.scale(slow(step.events), times)])
    rows = whatif.events_of(step, run)
    table = whole.trace.columns(schema.NAMES, step=step.window.step)
    kept = np.searchsorted(np.sort(table["id"].to_numpy()), rows["id"])
    table = table.sort_by("id").take(kept)
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    columns |= {name: rows[name] for name in ("start_ts", "duration_ns", "wait_ns")}
    columns["wait_for"] = rows.text("wait_for", rows["wait_for"]).tolist()
    own = next(s for s in whole.context.metadata["segments"] if s["step"] == step.window.step)
    segments = [own | {"end_ts": run.end_ts}]
    with TraceWriter(path) as writer:
        writer.write(columns)
        writer.close(whole.context.metadata | {"segments": segments}, whole.trace.operators.to_dict("list"))
    return path
