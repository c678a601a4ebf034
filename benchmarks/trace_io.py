"""What a trace costs: bytes an event on disk, events a second written with all columns and read with three.

Prints ratios to two forms of the same table, both measured in the same run: Parquet as pyarrow writes it without being told how, and
numpy arrays saved as they are.

    python benchmarks/trace_io.py --events 4000000
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from neuronprof.trace import reader, schema
from neuronprof.trace.writer import TraceWriter

THREE = ("engine", "start_ts", "duration_ns")
ENGINES = ["tensor", "vector", "scalar", "dma", "hbm"]
NAMES = ["MATMUL", "TENSOR_TENSOR", "ACTIVATE", "DMA_LOAD", "DMA_STORE"]
KINDS = ["compute", "transfer"]
WAITS = ["none", "dma", "data"]
OPERATORS = ["aten.mm", "aten.add", "aten.native_layer_norm", "aten._softmax", "aten.gelu"]
PHASES = ["forward", "backward"]


def operator_events(random):
    """One operator's events: rows of engine, queue, name, nanoseconds, bytes, FLOPs; 10 to 25 of them."""
    loads, matmuls, vectors, scalars = random.integers((2, 2, 1, 0), (5, 9, 4, 3))
    rows = [(3, i % 2, 3, random.integers(2_000, 40_000), 1 << 18, 0) for i in range(loads)]
    rows += [(4, 0, 3, random.integers(1_000, 20_000), 1 << 18, 0) for _ in range(loads)]
    rows += [(0, 0, 0, random.integers(300, 3_000), 0, 1 << 24) for _ in range(matmuls)]
    rows += [(1, 0, 1, random.integers(200, 2_000), 0, 1 << 16) for _ in range(vectors)]
    rows += [(2, 0, 2, random.integers(200, 2_000), 0, 1 << 16) for _ in range(scalars)]
    rows += [(engine, queue, 4, random.integers(2_000, 40_000), 1 << 17, 0) for engine, queue in ((3, 2), (4, 0))]
    return np.array(rows)


def rank_events(rank, events, random):
    """A rank's columns in program order: 48 layers of the same operators, jittered durations, waits in half of the events."""
    layer = [operator_events(random) for _ in range(40)]
    once = np.concatenate(layer)
    rows = np.concatenate([once] * (events // len(once) + 1))[:events]
    op = np.cumsum(np.concatenate([np.arange(len(e)) == 0 for e in layer] * (events // len(once) + 1))[:events]) - 1
    duration = np.maximum(1, rows[:, 3] * (1 + 0.02 * random.standard_normal(events))).astype(np.int64)
    wait = np.where(random.random(events) < 0.5, 0, random.integers(0, 5_000, events))
    start = np.zeros(events, np.int64)
    for track in range(5 * 3):
        mine = np.flatnonzero(rows[:, 0] * 3 + rows[:, 1] == track)
        start[mine] = np.cumsum(duration[mine] + wait[mine]) - duration[mine]
    number = np.arange(events)
    degree = random.integers(1, 4, events)
    pointers = np.concatenate(([0], np.cumsum(degree)))
    distances = np.minimum(random.geometric(0.1, pointers[-1]), np.repeat(number, degree) + 1)
    layers = [f"model.layers.{i}.{part}" for i in range(48) for part in ("attention", "mlp.up", "mlp.down", "norm")]
    sources = [f"/home/user/project/model.py:{line}" for line in range(100, 140)]
    return {
        "id": number + rank * events, "step": op * 3 // (op[-1] + 1), "chip": rank // 4, "core": rank % 4, "rank": rank,
        "engine": (rows[:, 0], ENGINES), "queue": rows[:, 1], "kind": ((rows[:, 0] > 2).astype(np.int32), KINDS),
        "name": (rows[:, 2], NAMES), "start_ts": start, "duration_ns": duration, "wait_ns": wait,
        "wait_for": (np.where(wait > 0, 1 + rows[:, 0] % 2, 0), WAITS), "op": op,
        "op_name": (op % 5, OPERATORS), "layer": (op // 10 % len(layers), layers), "phase": (op // 1920 % 2, PHASES),
        "source": (op % len(sources), sources), "bytes": rows[:, 4], "flops": rows[:, 5], "dtype": "bfloat16",
        "released_by": np.maximum(number - distances[pointers[:-1]], -1) + rank * events, "deps": (pointers, distances),
    }  # fmt: skip


def timed(act):
    """Seconds that `act` takes, and what it returns."""
    start = time.perf_counter()
    result = act()
    return time.perf_counter() - start, result


def size(path):
    """Bytes of a file or of the files in a folder."""
    return sum(f.stat().st_size for f in (path.iterdir() if path.is_dir() else [path]))


def write_trace(path, batches):
    with TraceWriter(path) as writer:
        for batch in batches:
            writer.write(batch)
        writer.close({"segments": []})


def read_three(path):
    return reader.open_trace(path).columns(THREE)


def save_arrays(folder, table):
    """Every column but the list as a .npy file, strings as their codes; the plainest form there is."""
    folder.mkdir()
    for name in schema.NAMES:
        if name == "deps":
            continue
        column = table[name].combine_chunks()
        values = column.indices.fill_null(-1) if name in schema.STRINGS else column
        np.save(folder / f"{name}.npy", values.to_numpy(zero_copy_only=False))


def measure(events, ranks, folder):
    random = np.random.default_rng(0)
    batches = [rank_events(rank, events // ranks, random) for rank in range(ranks)]
    events = sum(len(b["start_ts"]) for b in batches)
    path = folder / "trace.parquet"
    written = min(timed(lambda: write_trace(path, batches))[0] for _ in range(3))
    read = min(timed(lambda: read_three(path))[0] for _ in range(5))
    everything = min(timed(lambda: reader.open_trace(path).columns())[0] for _ in range(2))
    table = reader.open_trace(path).columns()
    plain, _ = timed(lambda: pq.write_table(table, folder / "plain.parquet"))
    plain_read = min(timed(lambda: pq.read_table(folder / "plain.parquet", columns=list(THREE)))[0] for _ in range(5))
    saved, _ = timed(lambda: save_arrays(folder / "arrays", table))
    return {
        "events": events, "bytes": size(path) / events, "write": events / written, "read": events / read, "read_all": events / everything,
        "plain_bytes": size(folder / "plain.parquet") / size(path), "plain_write": plain / written, "plain_read": plain_read / read,
        "saved_bytes": size(folder / "arrays") / size(path), "saved_write": saved / written,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=4_000_000)
    parser.add_argument("--ranks", type=int, default=8)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        found = measure(arguments.events, arguments.ranks, folder)
    finally:
        shutil.rmtree(folder)
    print(f"{found['events']:,} events, {len(schema.NAMES)} columns")
    print(f"on disk            {found['bytes']:.2f} bytes an event (limit 10)")
    print(f"written            {found['write'] / 1e6:.1f} million events/s, all columns (limit 3)")
    print(f"read three columns {found['read'] / 1e6:.0f} million events/s (limit 30)")
    print(f"read all columns   {found['read_all'] / 1e6:.1f} million events/s")
    print("against pyarrow's defaults for the same sorted table:")
    print(
        f"  {found['plain_bytes']:.1f} times smaller, written {found['plain_write']:.1f} times as fast, "
        f"three columns read {found['plain_read']:.1f} times as fast"
    )
    print("against numpy arrays saved as they are, without deps:")
    print(f"  {found['saved_bytes']:.1f} times smaller, written {found['saved_write']:.2f} times as fast")


if __name__ == "__main__":
    main()
