"""Turns a picture of engines over time into a trace.

    tensor   ..aaaa..bb      one character a nanosecond (times `scale`), a dot is idle, equal letters in a row are one event
    dma      aaa....bb.
    cc       ....~~CC..      a tilde: waiting for a peer, until the event that follows
    dma:2    ...s......      the queue after a colon

The same letter on any track belongs to the same operator. A line 'rank 1' starts another rank. Letters get their operator, layer and other
columns from `about`, a dict a letter; what the letters do not say gets a plain value.
"""

import re

import numpy as np

from neuronprof.trace import schema
from neuronprof.trace.writer import TraceWriter

KIND = {
    "dma": "transfer",
    "hbm": "transfer",
    "neuronlink": "transfer",
    "efa": "transfer",
    "cc": "collective",
    "host": "marker",
}
NAME = {"tensor": "MATMUL", "vector": "TENSOR_TENSOR", "scalar": "ACTIVATE", "gpsimd": "CUSTOM_OP", "dma": "DMA_LOAD", "hbm": "DMA_LOAD",
        "cc": "AllReduce", "neuronlink": "AllReduce", "efa": "AllReduce", "host": "LAUNCH"}  # fmt: skip
MACHINE = {"peak_flops": {"bf16": 1e12, "fp8": 2e12, "fp32": 0.25e12}, "hbm_bandwidth": 1e11, "hbm_capacity": 1000,
           "neuronlink_bandwidth": 1e10, "efa_bandwidth": 1e9}  # fmt: skip


def rows(picture, about=None, scale=1):
    """The events of a picture as dicts, in the order in which they stand in it."""
    found, rank = [], 0
    for line in filter(None, map(str.strip, picture.splitlines())):
        track, drawn = line.split()
        if track == "rank":
            rank = int(drawn)
            continue
        engine, _, queue = track.partition(":")
        for run in re.finditer(r"(~*)(([^.~])\3*)", drawn):
            event = {
                "rank": rank, "chip": rank // 4, "core": rank % 4, "engine": engine, "queue": int(queue or 0),
                "kind": KIND.get(engine, "compute"),
                "name": NAME[engine], "start_ts": run.start(2) * scale, "duration_ns": len(run[2]) * scale, "wait_ns": len(run[1]) * scale,
                "wait_for": "peer" if run[1] else "none",
            }  # fmt: skip
            found.append({**event, **((about or {}).get(run[3]) or {"op_name": run[3]})})
    return found


def levels(drawn, category, scale=1, rank=0, engine="hbm"):
    """Levels of a memory as memory events: a digit is the bytes held in that nanosecond, a dot nothing."""
    return [
        {"rank": rank, "chip": rank // 4, "core": rank % 4, "engine": engine, "queue": 1, "kind": "memory", "name": category,
         "start_ts": run.start() * scale, "duration_ns": len(run[0]) * scale, "bytes": int(run[1])}
        for run in re.finditer(r"(\d)\1*", drawn)
    ]  # fmt: skip


def segment(start, end, step=0, **figures):
    """A window for the metadata; step -1 is evaluation."""
    return {"kind": "evaluation" if step < 0 else "step", "step": step, "start_ts": start, "end_ts": end, **figures}


def write(path, events, segments=None, operators=None, **metadata):
    """Writes events (dicts) as a trace; without segments the metadata has none."""
    columns = {}
    for name in dict.fromkeys(key for event in events for key in event):
        values = [event.get(name) for event in events]
        columns[name] = (
            values if name in schema.STRINGS or name == "deps" else np.array([0 if v is None else v for v in values])
        )
    about = {"machine": {"rank": MACHINE}, **({"segments": segments} if segments else {}), **metadata}
    with TraceWriter(path) as writer:
        if events:
            writer.write(columns)
        writer.close(about, operators)
    return path


def table(frame):
    """A table as text, the way tests write down what they expect: a header, then rows, cells by single spaces."""
    return [" ".join(map(_cell, row)) for row in [frame.columns, *frame.itertuples(index=False)]]


def _cell(value):
    if isinstance(value, float) and value == value:
        return f"{value:.4g}"
    return str(value) or "''"
