"""What a trace tells of its run, as it stands in the Parquet metadata: read, and of the shape that readers rely on."""

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from neuronprof.errors import NeuronprofError
from neuronprof.trace import schema

LATEST = 2**61  # nanoseconds, 73 years: no run is longer, and sums of two times fit
_MOST_RANKS = 2**22  # of a job
_COUNTS: dict[str, int] = {"world_size": _MOST_RANKS, "pipeline.count": _MOST_RANKS, "pipeline.stride": _MOST_RANKS,
           "machine.ranks_per_chip": 2**15}  # fmt: skip
_SHAPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("machine", "machine.rank", "machine.rank.peak_flops", "machine.quantities", "mesh", "pipeline", "layout",
                     "formulas", "given", "numbering", "memory_fit"), dict),
    **dict.fromkeys(("segments", "clocks", "written_ranks"), list),
    **dict.fromkeys(_COUNTS, int),
    **dict.fromkeys(("machine.rank.hbm_bandwidth", "machine.rank.hbm_capacity", "jitter"), (int, float)),
}  # fmt: skip


def read(text: bytes, name: str) -> dict[str, Any]:
    """The metadata of a trace, without what is null.

    Args:
        text: as it stands in the file.
        name: of the trace, for messages.

    Raises:
        NeuronprofError: it cannot be read, has not the shape that this version knows, or is of a newer one.
    """
    try:
        found = json.loads(text)
        major = int(str(found["schema_version"]).split(".")[0])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NeuronprofError(f"{name} has unreadable neuronprof metadata; record it again.") from error
    if major > int(schema.VERSION.split(".")[0]):
        raise NeuronprofError(
            f"{name} has trace schema {found['schema_version']}, this neuronprof reads {schema.VERSION}; "
            "install a newer neuronprof."
        )
    found = {key: value for key, value in found.items() if value is not None}
    if wrong := next(chain(_misshapen(found), _impossible(found.get("segments") or [])), None):
        raise NeuronprofError(f"{name} has unreadable neuronprof metadata: {wrong}; record it again.")
    return found


def _misshapen(found: Mapping[str, Any]) -> Iterator[str]:
    """What is not of the shape that it should have; the outer before the inner."""
    for path, kind in _SHAPES.items():
        value = _at(found, path)
        if not (value is None or isinstance(value, kind)):
            yield f"'{path}' is of type {type(value).__name__}"
    for path, most in _COUNTS.items():
        if not 0 < (_at(found, path) or 1) <= most:
            yield f"'{path}' is {_at(found, path)}"


def _at(found: Mapping[str, Any], path: str) -> Any:
    """What stands at 'outer.inner', None if nothing does."""
    value: Any = found
    for key in path.split("."):
        value = None if value is None else value.get(key)
    return value


def _impossible(segments: list[Any]) -> Iterator[str]:
    """Segments that have no number, or no time."""
    for segment in segments:
        try:
            step = 0 if segment.get("kind") == "evaluation" else segment["step"]
            start, end = segment["start_ts"], segment["end_ts"]
            possible = (
                all(type(number) is int for number in (step, start, end)) and -LATEST < int(start) <= int(end) < LATEST
            )
        except (AttributeError, KeyError):
            possible = False
        if not possible:
            yield f"a segment is {json.dumps(segment)[:80]}"
