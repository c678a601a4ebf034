"""A trace of any size made from nothing but numpy: steps of a transformer, for tests and benchmarks of the view."""

from pathlib import Path

import numpy as np
import picture

from neuronprof.trace.writer import TraceWriter

LAYERS = 12
GEMMS = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 1, "up": 4, "down": 4}  # how wide each is
PER_TILE = 3.24  # events a tile has, over all engines
MACHINE = {"peak_flops": {"bf16": 1e15, "fp8": 2e15, "fp32": 2.5e14}, "hbm_bandwidth": 4.9e12, "hbm_capacity": 72 * 2**30,
           "neuronlink_bandwidth": 1.28e12, "efa_bandwidth": 5e10}  # fmt: skip


class Steps:
    """Lays out one rank's training steps operator by operator."""

    def __init__(self, writer, rank, tiles):
        self.writer, self.rank, self.tiles = writer, rank, tiles
        self.random = np.random.default_rng(rank)
        self.now = self.link_free = self.seen = self.held = 0
        self.operators = []

    def step(self, number):
        self.number = number
        for layer in range(LAYERS):
            for gemm in GEMMS:
                self.gemm("forward", layer, gemm)
        for layer in reversed(range(LAYERS)):
            for gemm in reversed(GEMMS):
                self.gemm("backward", layer, gemm)
                self.gemm("backward", layer, gemm)
            self.all_reduce(layer)
        self.optimizer()

    def add(self, start, duration, **columns):
        start = np.atleast_1d(start).astype(np.int64)
        place = {"step": self.number, "rank": self.rank, "chip": self.rank // 4, "core": self.rank % 4}
        self.writer.write(
            {"start_ts": start, "duration_ns": np.broadcast_to(duration, start.shape), **place, **columns}
        )

    def gemm(self, phase, layer, name):
        wide, tiles = GEMMS[name], self.tiles
        about = {
            "op": len(self.operators),
            "op_name": "aten.mm",
            "layer": f"model.layers.{layer}.{name}",
            "phase": phase,
            "source": "model.py:41",
        }
        self.operators.append({**about, "shapes": f"(4096, 1024) x (1024, {1024 * wide}) -> (4096, {1024 * wide})"})
        duration = 200 * wide + self.random.integers(0, 3, tiles)
        wait = np.where(self.random.random(tiles) < 0.1, self.random.integers(20, 400, tiles), 0)
        start = self.now + np.cumsum(duration + wait) - duration
        moved = 128 * 512 * 2 * wide
        self.add(start, duration, engine="tensor", kind="compute", name="MATMUL", wait_ns=wait, wait_for="dma", flops=2**24 * wide,
                 dtype="bfloat16", operands=f"matmul batch=1 M=128 K=128 N={512 * wide} itemsize=2", **about)  # fmt: skip
        self.add(start, duration - 20, engine="dma", kind="transfer", name="DMA_LOAD", bytes=moved, **about)
        self.add(start, duration // 2, engine="hbm", kind="transfer", name="DMA_LOAD", bytes=moved, **about)
        few = slice(0, max(1, tiles // 5))
        engine, opcode = ("scalar", "ACTIVATE") if name == "up" else ("vector", "TENSOR_TENSOR")
        operands = f"{engine} elements=65536 passes=1 itemsize=2"
        self.add(start[few] + 50, 130, engine=engine, kind="compute", name=opcode, operands=operands, **about)
        self.now = int(start[-1] + duration[-1]) + int(self.random.integers(100, 2000))
        self.memory(80 * 2**20 if phase == "forward" else -40 * 2**20)

    def memory(self, change):
        levels = {"weights": 8 * 2**30, "optimizer_state": 24 * 2**30, "activations": self.held}
        for name, held in levels.items():
            self.add(self.seen, self.now - self.seen, engine="hbm", queue=1, kind="memory", name=name, bytes=held)
        self.seen, self.held = self.now, max(0, self.held + change)

    def all_reduce(self, layer):
        length = max(2000, 40 * self.tiles)
        start = self.link_free = max(self.link_free, self.now)
        about = {"name": "AllReduce", "phase": "backward", "layer": f"model.layers.{layer}"}
        self.add(start, length, engine="cc", kind="collective", wait_ns=300, wait_for="peer", bytes=25 * 2**20, collective=layer,
                 replica_group="dp:0-7", algorithm="ring", **about)  # fmt: skip
        self.add(start, length, engine="neuronlink", kind="transfer", bytes=length * 800, **about)
        self.link_free += length

    def optimizer(self):
        self.now = max(self.now, self.link_free)
        start = self.now + 155 * np.arange(self.tiles * 8)
        self.add(start, 150, engine="vector", kind="compute", name="TENSOR_TENSOR", op_name="aten._foreach_addcdiv_", phase="optimizer",
                 source="train.py:88")  # fmt: skip
        self.now = int(start[-1]) + 150
        self.add(self.now - 3000, 2500, engine="host", kind="marker", name="LAUNCH")


def write(path, events, steps=2, ranks=(0,)):
    """Writes about `events` events a rank; all ranks do the same with other waits."""
    operators = steps * LAYERS * len(GEMMS) * 3
    tiles = max(1, round(events / operators / PER_TILE))
    with TraceWriter(Path(path)) as writer:
        for rank in ranks:
            layout = Steps(writer, rank, tiles)
            ends = [0]
            for number in range(steps):
                layout.step(number)
                ends.append(layout.now)
        segments = [
            picture.segment(ends[n], ends[n + 1], n, model_flops=10**12, hardware_flops=10**12, model_bytes=10**9)
            for n in range(steps)
        ]
        about = {
            "script": "train.py",
            "world_size": 8,
            "machine": {"title": "Trainium4", "rank": MACHINE},
            "segments": segments,
        }
        columns = {name: [operator[name] for operator in layout.operators] for name in layout.operators[0]}
        writer.close(about, columns)
    return Path(path)
