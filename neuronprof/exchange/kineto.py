"""One rank's trace of PyTorch's profiler (Kineto), as arrays: NVIDIA, AMD, Intel, MTIA or CPU alone, of any version.

What is needed of an event is its phase (`ph`), category, name, `ts` and `dur`; everything else may be missing.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.errors import NeuronprofError
from neuronprof.exchange.jsonstream import JsonTrace, Watch, unwatched
from neuronprof.exchange.nanoseconds import nanoseconds

KERNEL, COPY = 0, 1
DEVICE = {"kernel": KERNEL, "mtia_ccp_events": KERNEL, "gpu_memcpy": COPY, "gpu_memset": COPY}
OPERATOR, CALL, ANNOTATION, PYTHON = 0, 1, 2, 3
HOST = {
    "cpu_op": OPERATOR, "user_annotation": ANNOTATION, "python_function": PYTHON,
    **dict.fromkeys(("cuda_runtime", "cuda_driver", "cuda_sync", "hip_runtime", "hip_driver", "mtia_runtime", "xpu_runtime", "xpu_driver",
                     "xpu_sync", "hpu_op", "glow_runtime", "privateuse1_runtime", "privateuse1_driver"), CALL),
}  # fmt: skip
_OLD = {
    "Kernel": "kernel",
    "Memcpy": "gpu_memcpy",
    "Memset": "gpu_memset",
    "Runtime": "cuda_runtime",
    "Operator": "cpu_op",
}  # PyTorch 1.8 to 1.11
_TRACKS = {
    "CPU functions": "cpu_op",
    "CUDA functions": "kernel",
}  # what torch.autograd.profiler writes instead of categories

_DEVICE_FIELDS = ("what", "name", "start", "duration", "stream", "device", "correlation", "bytes")
_HOST_FIELDS = ("what", "name", "start", "duration", "thread", "correlation", "sequence")

Columns = dict[str, NDArray[np.int64]]


@dataclass
class Names:
    """Texts with their codes, in the order in which they came."""

    texts: list[str] = field(default_factory=list)
    _codes: dict[str, int] = field(default_factory=dict)

    def code(self, text: Any) -> int:
        """The code of a text; anything else is taken as its text, and half of a surrogate pair as a question mark."""
        known = self._codes.get(text) if type(text) is str else self._codes.get(text := str(text))
        if known is None:
            known = self._codes[text] = len(self.texts)
            self.texts.append(text.encode("utf-8", "replace").decode())
        return known


@dataclass
class Profile:
    """What one file holds.

    rank: None if the file does not say. device, host: an int64 array a field, in the order of the file; times are nanoseconds, `name` is a
    code of `names`, `thread` one of `threads`; -1 where an event does not say. messages: arguments of collectives, by row of `device`.
    skipped: events that have no readable time.
    """

    path: Path
    header: dict[str, Any]
    rank: int | None
    names: list[str]
    threads: list[str]
    device: Columns
    host: Columns
    messages: dict[int, dict[str, Any]]
    skipped: int

    @property
    def hardware(self) -> str:
        """The device's name, '' if the file does not say."""
        devices = self.header.get("deviceProperties")
        first = devices[0] if isinstance(devices, list) and devices else None
        return str(first.get("name") or "") if isinstance(first, dict) else ""


def read(path: Path, watch: Watch = unwatched) -> Profile:
    """Reads a file, gzipped or not.

    Args:
        path: the file.
        watch: called with the bytes read and the bytes in all.

    Raises:
        NeuronprofError: it cannot be read, is damaged, or has no events of PyTorch's profiler.
    """
    trace = JsonTrace(path, watch)
    found = _Collected()
    found.take(trace.events())
    if not (found.device or found.host):
        raise NeuronprofError(
            f"{path} has no operators and no kernels of PyTorch's profiler; export it with export_chrome_trace."
        )
    base = _whole(trace.header.get("baseTimeNanoseconds"), 0)
    device, host = _columns(found.device, _DEVICE_FIELDS), _columns(found.host, _HOST_FIELDS)
    for columns in (device, host):
        columns["start"] += base
    return Profile(
        path, trace.header, _rank(trace.header), found.names.texts, found.threads.texts, device, host, found.messages, found.skipped
    )  # fmt: skip


@dataclass
class _Collected:
    names: Names = field(default_factory=Names)
    threads: Names = field(default_factory=Names)
    device: array = field(default_factory=lambda: array("q"))
    host: array = field(default_factory=lambda: array("q"))
    messages: dict[int, dict[str, Any]] = field(default_factory=dict)
    skipped: int = 0

    def take(self, events: Iterable[Any]) -> None:
        """Keeps what is wanted of each event."""
        for event in events:
            if type(event) is not dict or event.get("ph") != "X":
                continue
            category = event.get("cat")
            if type(category) is not str:
                category = _TRACKS.get(str(event.get("pid"))) if category is None else None
            category = _OLD.get(category or "", category)
            if category in HOST:
                self._host(event, HOST[category])
            elif category in DEVICE:
                self._device(event, DEVICE[category])

    def _times(self, event: dict[str, Any]) -> tuple[int, int] | None:
        start, duration = nanoseconds(event.get("ts")), nanoseconds(event.get("dur", 0))
        if start is None or duration is None or not -_LATEST < start < _LATEST or duration >= _LATEST:
            self.skipped += 1
            return None
        return start, max(duration, 0)

    def _host(self, event: dict[str, Any], what: int) -> None:
        times = self._times(event)
        if times is None:
            return
        args = event.get("args")
        args = args if type(args) is dict else {}
        thread = self.threads.code(f"{event.get('pid')}/{event.get('tid')}")
        more = _whole(args.get("correlation")), _whole(args.get("Sequence number"))
        self.host.extend((what, self.names.code(event.get("name", "")), *times, thread, *more))

    def _device(self, event: dict[str, Any], what: int) -> None:
        times = self._times(event)
        if times is None:
            return
        args = event.get("args")
        args = args if type(args) is dict else {}
        stream = _whole(args.get("stream", event.get("tid")))
        device = _whole(args.get("device", event.get("pid")))
        if "Collective name" in args:
            self.messages[len(self.device) // len(_DEVICE_FIELDS)] = args
        moved = _whole(args.get("bytes"), 0)
        more = _whole(args.get("correlation")), moved if 0 <= moved < _MOST_BYTES else 0
        self.device.extend((what, self.names.code(event.get("name", "")), *times, stream, device, *more))


_MOST_BYTES = 2**48  # of one copy; more is no size
_LATEST = 2**62  # nanoseconds; what is later is no time


def _whole(value: Any, default: int = -1) -> int:
    """An integer of 64 bits, written as such or as text; else the default."""
    if type(value) is not int:
        try:
            value = int(value)
        except (TypeError, ValueError):
            return default
    return value if -_LATEST < value < _LATEST else default


def _columns(flat: array, fields: tuple[str, ...]) -> Columns:
    table = np.frombuffer(flat, np.int64).reshape(-1, len(fields)) if flat else np.zeros((0, len(fields)), np.int64)
    return {name: table[:, position].copy() for position, name in enumerate(fields)}


def _rank(header: dict[str, Any]) -> int | None:
    about = header.get("distributedInfo")
    stated = _whole(about.get("rank")) if isinstance(about, dict) else -1
    return stated if stated >= 0 else None
