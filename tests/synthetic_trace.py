"""Traces made from nothing but numpy, for tests and benchmarks of the view: a transformer-like step of any number of events."""

import base64
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from neuronprof.trace import schema

DEFAULTS = {
    "step": 0, "chip": 0, "core": 0, "rank": 0, "queue": 0, "wait_ns": 0, "wait_for": "none", "op": -1, "op_name": None, "layer": None,
    "phase": None, "source": None, "bytes": 0, "flops": 0, "dtype": "bfloat16", "collective": -1, "replica_group": None, "algorithm": None,
    "released_by": -1,
}  # fmt: skip
GEMMS = ("q_proj", "k_proj", "v_proj", "o_proj", "up", "down")


def metadata(steps, end, ranks=(0,), script="train.py"):
    edges = np.linspace(0, end, steps + 1).astype(int)
    return {
        "schema_version": schema.VERSION, "producer": "neuronprof 0.1.0", "script": script, "argv": [], "values": "none", "notes": {},
        "parameters": 10_000_000, "unknown_operators": {},
        "machine": {"chip": "trainium4", "title": "AWS Trainium4 (simulated)", "lnc": 2, "ranks_per_chip": 4, "price_hour": 10.0, "quantities": {},
                    "rank": {"peak_flops": {"bf16": 1e15, "fp8": 2e15, "fp32": 2.5e14}, "hbm_bandwidth": 4.9e12, "hbm_capacity": 72 * 2**30,
                             "neuronlink_bandwidth": 1.28e12, "efa_bandwidth": 5e10}},
        "mesh": {"dp": 8}, "world_size": 8, "written_ranks": list(ranks), "seed": 0, "jitter": 0.0, "slow_chips": {},
        "segments": [{"kind": "step", "step": s, "start_ts": int(edges[s]), "end_ts": int(edges[s + 1]), "model_flops": 10**12,
                      "hardware_flops": 10**12, "model_bytes": 10**9} for s in range(steps)],
        "memory_fit": {"peak": 40 * 2**30, "capacity": 72 * 2**30, "at_peak": {"weights": 20 * 2**30}},
    }  # fmt: skip


def write(path, rows, about, operators=None):
    """Writes rows (list of dicts or a DataFrame; missing columns get defaults) as a trace."""
    frame = pd.DataFrame(rows, columns=None if len(rows) else list(schema.NAMES))
    for name, value in DEFAULTS.items():
        if name not in frame:
            frame[name] = value
    frame = frame.sort_values(["chip", "core", "engine", "queue", "start_ts"], kind="stable")
    frame["id"] = np.arange(len(frame))
    frame["deps"] = [[]] * len(frame) if len(frame) < 10_000 else None
    columns = {c.name: pa.array(frame[c.name], from_pandas=True).cast(c.type) for c in schema.COLUMNS}
    table = pa.table(columns, schema=schema.ARROW)
    extra = {b"neuronprof": json.dumps(about).encode()}
    if operators is not None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, operators.schema) as stream:
            stream.write_table(operators)
        extra[b"neuronprof.operators"] = base64.b64encode(sink.getvalue().to_pybytes())
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **extra}), Path(path))
    return Path(path)


def operator_table(ops):
    frame = pd.DataFrame(
        ops, columns=["op", "op_name", "layer", "phase", "source", "shapes", "dtype", "flops", "bytes"]
    )
    return pa.Table.from_pandas(frame.astype({"op": "int32", "flops": "int64", "bytes": "int64"}), preserve_index=False)


class Transformer:
    """Lays out steps of a transformer operator by operator; `rows` is a list of column blocks."""

    def __init__(self, events, steps=2, layers=12, rank=0, seed=0):
        self.random = np.random.default_rng(seed)
        self.rank, self.steps, self.layers = rank, steps, layers
        operators = steps * layers * len(GEMMS) * 3
        self.tiles = max(1, round(events / operators / 3.2))
        self.blocks, self.ops = [], []
        self.now, self.held = 0, 0

    def build(self):
        for step in range(self.steps):
            self.step = step
            for layer in range(self.layers):
                for gemm in GEMMS:
                    self.operator("forward", layer, gemm)
            for layer in reversed(range(self.layers)):
                for gemm in reversed(GEMMS):
                    self.operator("backward", layer, gemm)
                    self.operator("backward", layer, gemm)
                self.collective(layer)
            self.optimizer()
        return pd.concat(self.blocks, ignore_index=True), self.now

    def add(self, **columns):
        n = (
            max(len(v) for v in columns.values() if isinstance(v, np.ndarray))
            if any(isinstance(v, np.ndarray) for v in columns.values())
            else 1
        )
        base = {**DEFAULTS, "step": self.step, "rank": self.rank, "chip": self.rank // 4, "core": self.rank % 4}
        self.blocks.append(pd.DataFrame({**base, **columns}, index=range(n)))

    def operator(self, phase, layer, gemm):
        op, tiles = len(self.ops), self.tiles
        about = {
            "op": op,
            "op_name": "aten.mm",
            "layer": f"model.layers.{layer}.{gemm}",
            "phase": phase,
            "source": f"model.py:{40 + len(gemm)}",
        }
        wide = 4 if gemm in ("up", "down") else 1
        self.ops.append({**about, "shapes": f"(4096, 1024) x (1024, {1024 * wide}) -> (4096, {1024 * wide})", "dtype": "bfloat16",
                         "flops": 2 * 4096 * 1024 * 1024 * wide, "bytes": 2 * 1024 * 1024 * wide})  # fmt: skip
        duration = np.full(tiles, 200 * wide) + self.random.integers(0, 3, tiles)
        gap = np.where(self.random.random(tiles) < 0.1, self.random.integers(20, 400, tiles), 0)
        start = self.now + np.cumsum(duration + gap) - duration
        self.add(**about, engine="tensor", kind="compute", name="MATMUL", start_ts=start, duration_ns=duration, wait_ns=gap,
                 wait_for=np.where(gap > 0, "dma", "none"), flops=2 * 128 * 512 * 128 * wide, bytes=0)  # fmt: skip
        self.add(**about, engine="dma", kind="transfer", name="DMA_LOAD", queue=0, start_ts=start - 100 + 100, duration_ns=duration - 20,
                 bytes=128 * 512 * 2 * wide)  # fmt: skip
        self.add(
            **about,
            engine="hbm",
            kind="transfer",
            name="DMA_LOAD",
            start_ts=start,
            duration_ns=duration // 2,
            bytes=128 * 512 * 2 * wide,
        )
        few = max(1, tiles // 5)
        self.add(**about, engine="scalar" if gemm == "up" else "vector", kind="compute", name="ACTIVATE" if gemm == "up" else "TENSOR_TENSOR",
                 start_ts=start[:few] + 50, duration_ns=np.minimum(duration[:few] - 60, 130), bytes=0)  # fmt: skip
        self.now = int(start[-1] + duration[-1]) + int(self.random.integers(100, 2000))
        self.memory(phase)

    def memory(self, phase):
        change = 80 * 2**20 * (1 if phase == "forward" else -1)
        span = self.now - getattr(self, "seen", 0)
        for name, held in (("weights", 8 * 2**30), ("optimizer_state", 24 * 2**30), ("activations", max(0, self.held))):
            self.add(
                engine="hbm",
                kind="memory",
                queue=1,
                name=name,
                start_ts=getattr(self, "seen", 0),
                duration_ns=span,
                bytes=held,
            )
        self.seen = self.now
        self.held = max(0, self.held + (change if phase == "forward" else change // 2))

    def collective(self, layer):
        length = max(2000, 40 * self.tiles)
        self.free = max(getattr(self, "free", 0), self.now)
        self.add(engine="cc", kind="collective", name="AllReduce", phase="backward", layer=f"model.layers.{layer}", start_ts=self.free,
                 duration_ns=length, wait_ns=300, wait_for="peer", bytes=25 * 2**20, collective=layer, replica_group="dp:0-7", algorithm="ring")  # fmt: skip
        for _ in range(4):
            self.add(
                engine="neuronlink",
                kind="transfer",
                name="AllReduce",
                start_ts=self.free + _ * length // 4,
                duration_ns=length // 4,
                bytes=length * 200,
            )
        self.free += length

    def optimizer(self):
        self.now = max(self.now, getattr(self, "free", 0))
        tiles = self.tiles * 8
        duration = np.full(tiles, 150)
        start = self.now + np.cumsum(duration + 5) - duration
        self.add(op_name="aten._foreach_addcdiv_", engine="vector", kind="compute", name="TENSOR_TENSOR", phase="optimizer", source="train.py:88",
                 layer="", start_ts=start, duration_ns=duration, bytes=0)  # fmt: skip
        self.now = int(start[-1] + 150)
        self.add(engine="host", kind="marker", name="LAUNCH", start_ts=self.now - 3000, duration_ns=2500)
        self.now += 1000


def transformer(path, events, steps=2, layers=12, ranks=(0,)):
    frames = []
    for rank in ranks:
        model = Transformer(events, steps, layers, rank, seed=rank)
        frame, end = model.build()
        frames.append(frame)
    return write(path, pd.concat(frames, ignore_index=True), metadata(steps, end, ranks), operator_table(model.ops))
