"""The breakdown of a PyTorch profiler's file from its device events alone, without reading the rest of it.

Kineto writes the fields of an event in one order. What has another is read in full instead, so the figures are the same.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neuronprof.exchange import nccl
from neuronprof.exchange.breakdown import Breakdown, Interval, split
from neuronprof.exchange.jsonstream import Watch, unwatched
from neuronprof.exchange.nanoseconds import nanoseconds
from neuronprof.exchange.ranks import numbered

_CHUNK = 1 << 18
_EVENT = 1 << 15  # no device event is longer
_BEFORE = 64  # characters of an event before its category
_DEVICE = r"(?:kernel|gpu_mem\w+|mtia_ccp_events|Kernel|Mem\w+)"
_ANY = re.compile(rf'"cat":\s*"{_DEVICE}"')
_WHOLE = re.compile(
    rf'"ph":\s*"X",\s*("cat"):\s*"({_DEVICE})",\s*"name":\s*"([^"\\]*)",\s*"pid":\s*[^,]+,\s*"tid":\s*[^,]+,\s*'
    r'"ts":\s*([\d.]+),\s*"dur":\s*([\d.]+)\s*[,}]'
)
_RANK = re.compile(r'"distributedInfo":\s*\{[^{}]*?"rank":\s*(\d+)')
_BEGINS = re.compile(r"\s*\{")
_ENDS = re.compile(r"\}\s*\]\s*,?")  # of the events


@dataclass
class _Seen:
    rank: int | None = None
    compute: list[Interval] = field(default_factory=list)
    communication: list[Interval] = field(default_factory=list)
    memory: list[Interval] = field(default_factory=list)


def breakdowns(paths: Sequence[Path], watch: Watch = unwatched) -> list[Breakdown]:
    """The breakdown of each file, sorted by rank.

    Args:
        paths: files of one rank each, gzipped or not.
        watch: called with the files read and the files in all.

    Raises:
        NeuronprofError: a file cannot be read, or two are of the same rank.
    """
    seen = []
    for number, path in enumerate(paths):
        watch(number, len(paths))
        seen.append(_quickly(path) or _fully(path))
    ranks = numbered([one.rank for one in seen], paths)
    found = [split(rank, s.compute, s.communication, s.memory) for rank, s in zip(ranks, seen, strict=True)]
    return sorted(found, key=lambda breakdown: breakdown.rank)


def _quickly(path: Path) -> "_Seen | None":
    """The device events; None if the file has to be read in full to know them."""
    seen = _Seen()
    try:
        whole = _scan(path, seen)
    except (OSError, EOFError, zlib.error):
        return None
    return seen if whole and (seen.compute or seen.communication or seen.memory) else None


def _fully(path: Path) -> "_Seen":
    from neuronprof.exchange import kineto
    from neuronprof.exchange.kineto_rows import Rank

    profile = kineto.read(path)
    return _Seen(profile.rank, *Rank(profile, 0).intervals())


def _scan(path: Path, seen: _Seen) -> bool:
    """Collects the device events; False if anything is not as Kineto writes it."""
    text, first = "", True
    for more in _chunks(path):
        text += more
        if first and not _BEGINS.match(text):
            return False
        first = False
        safe = len(text) - _EVENT if more else len(text)
        last = _take(text, safe, seen)
        if last < 0:
            return False
        if more:
            text = text[max(last, safe - _BEFORE, 0) :]
    return _complete(text[-_EVENT:])


def _complete(tail: str) -> bool:
    """Whether the events end in this text, and what follows them is the end of the object that they stand in."""
    for end in [match.end() for match in _ENDS.finditer(tail)][::-1]:
        try:
            json.loads("{" + tail[end:])
        except ValueError:
            continue
        return True
    return False


def _chunks(path: Path) -> Iterator[str]:
    """The text in pieces, then an empty one."""
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        while piece := stream.read(_CHUNK):
            yield piece.decode("latin-1")
    yield ""


def _take(text: str, safe: int, seen: _Seen) -> int:
    """Takes the events that begin before `safe`; returns where to go on, -1 if one of them cannot be read."""
    if seen.rank is None and (stated := _RANK.search(text)):
        seen.rank = int(stated[1])
    at = 0
    expected = sum(1 for found in _ANY.finditer(text) if found.start() < safe)
    for match in _WHOLE.finditer(text):
        if match.start(1) >= safe:
            break
        expected -= 1
        at = match.end() - 1
        _, category, name, begin, length = match.groups()
        start, duration = nanoseconds(begin), nanoseconds(length)
        if start is None or duration is None:
            return -1
        kind = (
            seen.memory
            if "mem" in category.lower()
            else seen.communication
            if nccl.KERNEL.match(name)
            else seen.compute
        )
        kind.append((start, start + duration))
    return at if expected == 0 else -1
