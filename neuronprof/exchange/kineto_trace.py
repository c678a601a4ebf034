"""Traces of PyTorch's profiler as one of ours: a rank a file, kernels on engines, the host's work beside them.

Kernels that multiply matrices stand on the tensor engine, other kernels on the vector engine, NCCL and its likes on cc, copies and fills on
dma, what the host does on host; `queue` is the stream, for the host the thread. A kernel's operator, layer, phase and source line are those
of the call that launched it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from neuronprof.exchange import clocks, kineto
from neuronprof.exchange.imported import Imported, check_extent
from neuronprof.exchange.jsonstream import unwatched
from neuronprof.exchange.kineto_rows import Key, Rank, Window
from neuronprof.exchange.ranks import numbered
from neuronprof.trace.writer import TraceWriter

Progress = Callable[[str, int, int], None]


def write(paths: Sequence[Path], output: Path, progress: Progress = unwatched) -> Imported:
    """Writes the files' events as one trace.

    Raises:
        NeuronprofError: a file cannot be read, two are of the same rank, or the trace cannot be written.
    """
    profiles = [kineto.read(path, partial(progress, path.name)) for path in paths]
    ranks = numbered([p.rank for p in profiles], paths)
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    profiles, ranks = [profiles[i] for i in order], [ranks[i] for i in order]
    parts = [Rank(profile, rank) for profile, rank in zip(profiles, ranks, strict=True)]
    for part in parts:
        check_extent(min(other.first for other in parts), part.last, part.profile.path)
    ends = [part.ends for part in parts]
    offsets = clocks.align(ranks, [_unanimous(e, ends) for e in ends])
    for part, offset in zip(parts, offsets, strict=True):
        part.shift(offset.offset_ns)
    origin = min(part.first for part in parts)
    windows = _windows(parts)
    joined: dict[Key, int] = {}
    with TraceWriter(output) as writer:
        first_id = 0
        for part in parts:
            first_id += part.write(writer, origin, windows, first_id, joined)
        writer.close(_metadata(parts, offsets, windows, origin))
    return Imported(output, [part.breakdown() for part in parts], offsets, sum(p.skipped for p in profiles))


def _unanimous(own: clocks.Ends, every: Sequence[clocks.Ends]) -> clocks.Ends:
    """The collectives of groups in which every rank that takes part saw the same number: only those can be told apart by their number."""
    counts: dict[str, set[int]] = {}
    for ends in every:
        for group, number in Counter(group for group, _ in ends).items():
            counts.setdefault(group, set()).add(number)
    return {key: end for key, end in own.items() if len(counts[key[0]]) == 1}


def _windows(parts: Sequence[Rank]) -> list[Window]:
    """The profiler's steps, from the first rank that begins one to the first that begins the next; one step if there are none."""
    numbers = sorted({number for part in parts for number in part.steps})
    last = max(part.last for part in parts)
    if not numbers:
        return [(0, min(part.first for part in parts), last)]
    begins = [min(part.steps[n][0] for part in parts if n in part.steps) for n in numbers]
    ends = [*begins[1:], last]
    return [(step, begin, end) for step, (begin, end) in enumerate(zip(begins, ends, strict=True)) if end > begin]


def _metadata(
    parts: Sequence[Rank], offsets: Sequence[clocks.Offset], windows: Sequence[Window], origin: int
) -> dict[str, Any]:
    profiles = [part.profile for part in parts]
    about = [profile.header.get("distributedInfo") for profile in profiles]
    sizes = [a["world_size"] for a in about if isinstance(a, dict) and type(a.get("world_size")) is int]
    return {
        "format": "kineto",
        "script": profiles[0].path.name,
        "world_size": max([*sizes, len(parts)]),
        "machine": {"title": next((p.hardware for p in profiles if p.hardware), "")},
        "segments": [
            {"kind": "step", "step": step, "start_ts": a - origin, "end_ts": b - origin} for step, a, b in windows
        ],
        "clocks": [asdict(offset) for offset in offsets],
    }
