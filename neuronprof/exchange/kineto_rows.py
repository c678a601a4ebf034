"""One rank of PyTorch's profiler as rows of the trace."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neuronprof.exchange import callers, kineto, nccl
from neuronprof.exchange.breakdown import Breakdown, Interval, split
from neuronprof.exchange.kineto import Columns, Profile
from neuronprof.terms import Engine, Kind
from neuronprof.trace.writer import TraceWriter

_MATRIX = re.compile(
    r"gemm|conv(?!ert)|cutlass|cublas|xmma|[wd]grad|fprop|winograd|flash_?(fwd|bwd|attn)|fmha|Cijk_|matmul|_mm_|splitK|attention",
    re.IGNORECASE,
)
_TENSOR, _VECTOR, _CC, _DMA, _HOST = range(5)
ENGINES = [e.value for e in (Engine.TENSOR, Engine.VECTOR, Engine.CC, Engine.DMA, Engine.HOST)]
KINDS = [k.value for k in (Kind.COMPUTE, Kind.COMPUTE, Kind.COLLECTIVE, Kind.TRANSFER, Kind.MARKER)]
_MOST_QUEUES = 2**15

Window = tuple[int, int, int]  # step, start, end
Key = tuple[str, int]  # a collective: group and operation, and its number among them


class Rank:
    """One profile on its way into the trace."""

    def __init__(self, profile: Profile, rank: int) -> None:
        self.profile, self.rank = profile, rank
        device = profile.device
        kinds = np.array([_engine(name) for name in profile.names], np.int64)
        self.engine = np.where(device["what"] == kineto.COPY, _DMA, kinds[device["name"]] if len(kinds) else 0)
        self.messages = {
            row: nccl.message(profile.names[device["name"][row]], profile.messages.get(row, {}))
            for row in np.flatnonzero(self.engine == _CC).tolist()
        }
        self.keys = self._keys()
        end = device["start"] + device["duration"]
        self.ends = {key: int(end[row]) for row, key in self.keys.items()}

    def _keys(self) -> dict[int, tuple[str, int]]:
        """For each collective of the rank its group and its number in the order of starts, or the number that NCCL gave it."""
        seen: Counter[str] = Counter()
        keys = {}
        start = self.profile.device["start"]
        for row in sorted(self.messages, key=lambda row: int(start[row])):
            about = self.messages[row]
            group = f"{about.group} {about.name}"
            keys[row] = (group, about.sequence if about.sequence >= 0 else seen[group])
            seen[group] += 1
        return keys

    def shift(self, offset: int) -> None:
        """Moves all times."""
        self.profile.device["start"] += offset
        self.profile.host["start"] += offset

    @property
    def first(self) -> int:
        """The start of the first event."""
        return min(int(c["start"].min()) for c in (self.profile.device, self.profile.host) if len(c["start"]))

    @property
    def last(self) -> int:
        """The end of the last event."""
        parts = (self.profile.device, self.profile.host)
        return max(int((c["start"] + c["duration"]).max()) for c in parts if len(c["start"]))

    def breakdown(self) -> Breakdown:
        """Exact times of the device's classes."""
        return split(self.rank, *self.intervals())

    def intervals(self) -> tuple[list[Interval], list[Interval], list[Interval]]:
        """Start and end of what computes, communicates and copies on the device."""
        start, end = self.profile.device["start"], self.profile.device["start"] + self.profile.device["duration"]
        compute, communication, memory = (
            list(zip(start[mine].tolist(), end[mine].tolist(), strict=True))
            for mine in (self.engine <= _VECTOR, self.engine == _CC, self.engine == _DMA)
        )
        return compute, communication, memory

    @cached_property
    def steps(self) -> dict[int, tuple[int, int]]:
        """Start and end of the profiler's steps."""
        return callers.annotated(self.profile.host, self.profile.names, callers.STEP)

    def write(
        self, writer: TraceWriter, origin: int, windows: Sequence[Window], first_id: int, joined: dict[Key, int]
    ) -> int:
        """Writes the rank's rows; returns how many.

        Args:
            writer: takes them.
            origin: the time that becomes zero.
            windows: the steps.
            first_id: the first row's.
            joined: grows with the number of each collective in the trace.
        """
        device = self.profile.device
        shown = np.flatnonzero(np.isin(self.profile.host["what"], (kineto.OPERATOR, kineto.CALL)))
        calls = {name: column[shown] for name, column in self.profile.host.items()}
        start = np.concatenate((device["start"], calls["start"]))
        order = np.lexsort((-np.arange(len(start)), start))  # a call before the kernel that starts with it
        launch = _launches(device, calls)
        engine = np.concatenate((self.engine, np.full(len(shown), _HOST)))
        columns: dict[str, Any] = {
            "engine": (engine, ENGINES),
            "kind": (engine, KINDS),
            "queue": np.concatenate((_small(device["stream"]), _small(calls["thread"]))),
            "core": np.concatenate((_dense(device["device"]), np.full(len(shown), -1))),
            "start_ts": start - origin,
            "duration_ns": np.concatenate((device["duration"], calls["duration"])),
            **self._labels(launch, shown),
            **self._collectives(len(shown), joined),
        }
        rows = {name: (v[0][order], v[1]) if isinstance(v, tuple) else v[order] for name, v in columns.items()}
        released, deps = self._predecessors(launch, calls, order)
        ids = first_id + np.arange(len(order))
        writer.write({
            "id": ids, "rank": self.rank, "chip": self.rank, "step": steps_of(start[order], windows), "deps": deps,
            "released_by": np.where(released >= 0, first_id + released, -1), **rows,
        })  # fmt: skip
        return len(order)

    def _labels(self, launch: NDArray[np.int64], shown: NDArray[np.intp]) -> dict[str, Any]:
        """Name, operator, layer, phase and source of the device's rows, then of the host's."""
        profile = self.profile
        names = [*profile.names]
        of = callers.find(profile.host, names)
        host_row = np.append(shown, len(profile.host["start"]))[launch]  # past the end: nothing launched it
        rows = np.concatenate((host_row, shown))
        own = np.concatenate((profile.device["name"], profile.host["name"][shown]))
        operator = np.append(of.operator, callers.NONE)[rows]
        name = own.copy()
        for row, about in self.messages.items():
            name[row] = len(names)
            names.append(about.name)
        layer, phase, source, region = (
            np.append(column, callers.NONE)[rows] for column in (of.layer, of.phase, of.source, of.region)
        )
        return {
            "name": (name, names),
            "op_name": (np.where(operator >= 0, operator, own), names),
            "layer": (layer, of.layers),
            "phase": (phase, callers.PHASES),
            "source": (source, of.sources),
            "region": (region, of.regions),
        }

    def _collectives(self, hosts: int, joined: dict[Key, int]) -> dict[str, Any]:
        """What the device's collectives say of themselves; everything else has none."""
        count = len(self.profile.device["start"])
        texts = {name: np.full(count + hosts, None, object) for name in ("dtype", "replica_group", "algorithm")}
        size = np.concatenate((self.profile.device["bytes"], np.zeros(hosts, np.int64)))
        number = np.full(count + hosts, -1)
        for row, about in self.messages.items():
            size[row] = about.bytes
            number[row] = joined.setdefault(self.keys[row], len(joined))
            texts["dtype"][row], texts["replica_group"][row], texts["algorithm"][row] = (
                about.dtype,
                about.group,
                about.algorithm,
            )
        codes = {name: kineto.Names() for name in texts}
        coded = {
            name: (
                np.array([-1 if not text else codes[name].code(text) for text in column.tolist()], np.int64),
                codes[name].texts,
            )
            for name, column in texts.items()
        }
        return {"bytes": size, "collective": number, **coded}

    def _predecessors(
        self, launch: NDArray[np.int64], calls: Columns, order: NDArray[np.intp]
    ) -> tuple[NDArray[np.int64], pa.ListArray]:
        """For each row in `order` the place of what let it start (-1: none), and its launch and stream predecessor as distances.

        A kernel starts after its launch and after the one before it in its stream; the later of the two let it start.
        """
        device = self.profile.device
        devices = len(device["start"])
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        before = np.full(len(order), -1)
        lanes = np.lexsort((device["start"], device["stream"], device["device"]))
        same = np.ones(max(len(lanes) - 1, 0), bool)
        for name in ("stream", "device"):
            same &= np.diff(device[name][lanes]) == 0
        before[lanes[1:][same]] = lanes[:-1][same]
        called = np.concatenate((np.where(launch >= 0, devices + launch, -1), np.full(len(order) - devices, -1)))
        ends = np.concatenate((device["start"] + device["duration"], calls["start"], [np.iinfo(np.int64).min]))
        binding = np.where(ends[called] > ends[before], called, before)
        pairs = np.column_stack((called, before))[order]
        distance = np.where(pairs >= 0, np.arange(len(order))[:, None] - place[pairs], 0)
        kept = distance > 0
        pointers = np.concatenate(([0], np.cumsum(kept.sum(axis=1))))
        deps = pa.ListArray.from_arrays(pointers.astype(np.int32), distance[kept])
        released = np.where(binding >= 0, place[binding], -1)[order]
        return np.where(released < np.arange(len(order)), released, -1), deps


def steps_of(start: NDArray[np.int64], windows: Sequence[Window]) -> NDArray[np.int64]:
    """The step in which each event starts; -1 outside of all."""
    begins = np.array([window[1] for window in windows], np.int64)
    at = np.searchsorted(begins, start, side="right") - 1
    inside = (at >= 0) & (start < np.array([window[2] for window in windows], np.int64)[at])
    return np.where(inside, np.array([window[0] for window in windows])[at], -1)


def _engine(name: str) -> int:
    if nccl.KERNEL.match(name):
        return _CC
    return _TENSOR if _MATRIX.search(name) else _VECTOR


def _launches(device: Columns, calls: Columns) -> NDArray[np.int64]:
    """For each device event the call that launched it, by correlation number; -1 if it is not there."""
    rows = np.flatnonzero((calls["what"] == kineto.CALL) & (calls["correlation"] >= 0))
    if not len(rows):
        return np.full(len(device["start"]), -1)
    rows = rows[np.argsort(calls["correlation"][rows], kind="stable")]
    numbers = calls["correlation"][rows]
    at = np.minimum(np.searchsorted(numbers, device["correlation"]), len(rows) - 1)
    return np.where(numbers[at] == device["correlation"], rows[at], -1)


def _dense(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _small(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers that a queue can have: as they are, or counted where they are too large."""
    fits = not len(values) or (values.min() >= 0 and values.max() < _MOST_QUEUES)
    return values if fits else _dense(values)
