"""How the duration of an event came about: the formula that the trace kept of it, evaluated again with the numbers that it kept."""

from bisect import bisect_right
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import Any

from neuronprof import formula, noise
from neuronprof.analyze import groups
from neuronprof.errors import NeuronprofError
from neuronprof.formula import Formula
from neuronprof.terms import Engine

PICOSECONDS = 1e12
_LINKS = (Engine.NEURONLINK, Engine.EFA)
_WIRE = "wire"  # the line of a collective's formula that says how long its link moves bytes
OPERAND = "operand"

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """A line of a formula, with its value."""

    name: str
    expression: str
    value: float


@dataclass(frozen=True)
class Parameter:
    """A number that a formula names: an operand of the instruction, a number of the machine's file, or one of the job."""

    name: str
    value: float
    unit: str
    provenance: str
    source: str


@dataclass(frozen=True)
class Factor:
    """What makes this rank differ; of: the line of the formula that takes so many times as long."""

    what: str
    of: str
    times: float


@dataclass(frozen=True)
class Worked:
    """A duration from its formula. seconds: with the factors; bound: what the formula says binds."""

    lines: tuple[Line, ...]
    parameters: tuple[Parameter, ...]
    factors: tuple[Factor, ...]
    bound: str
    seconds: float


def read_operands(text: str) -> tuple[str, dict[str, float]]:
    """An event's formula and what it is given, from the event's `operands`.

    Raises:
        NeuronprofError: it is something else.
    """
    try:
        return formula.read(text)
    except ValueError as error:
        raise NeuronprofError(
            f"The trace has '{text[:40]}' for a formula and its operands; record it again."
        ) from error


def numbers(metadata: Mapping[str, Any]) -> dict[str, float]:
    """What formulas name besides operands, the machine's numbers and those of the job; empty where the trace keeps none."""
    kept: Mapping[str, Any] = {
        **((metadata.get("machine") or {}).get("quantities") or {}),
        **(metadata.get("given") or {}),
    }
    return {name: number["value"] for name, number in kept.items()}


def of_collective(text: str, metadata: Mapping[str, Any], known: Mapping[str, float]) -> tuple[float, float]:
    """How long a collective's links move bytes by its formula, and what it takes besides, seconds, on ranks that nothing slows.

    Args:
        text: the event's `operands`.
        metadata: of the trace.
        known: as `numbers`, or with some of them changed.

    Raises:
        NeuronprofError: what the trace kept of the formula cannot be read.
    """
    name, given = read_operands(text)
    try:
        values = Formula(metadata["formulas"][name]["text"], {}).evaluate(ChainMap(given, dict(known)))
        wire = float(values[_WIRE])
        return wire, float(values[formula.RESULT]) - wire
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise NeuronprofError("The formulas of the trace cannot be read; record it again.") from error


def worked(event: Event, metadata: Mapping[str, Any]) -> Worked:
    """The duration of an event that has operands; event: columns of its row.

    Raises:
        NeuronprofError: what the trace kept of the formula cannot be read.
    """
    try:
        name, operands = formula.read(event["operands"])
        kept = metadata["formulas"][name]
        chosen = Formula(kept["text"], kept["bounds"], tuple(kept["slowed_by"]))
        parameters = _parameters(operands, metadata)
        named = _Named({n: p.value for n, p in parameters.items()})
        values = chosen.evaluate(named)
        result = _WIRE if event["engine"] in _LINKS else formula.RESULT
        factors, seconds = _stretched(event, chosen, values, result, metadata)
        lines = tuple(Line(n, expression, float(values[n])) for n, expression in chosen.lines.items())
        asked = tuple(parameters[n] for n in named.asked)
        bound = _bound(chosen, ChainMap(values, dict(named)), result)
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise NeuronprofError(
            f"The formula of event {event['id']} cannot be read from the trace; record it again."
        ) from error
    return Worked(lines, asked, tuple(factors), bound, seconds)


def _bound(chosen: Formula, values: Mapping[str, Any], result: str) -> str:
    """What binds; what a link shows of a collective is the moving of bytes alone."""
    if result == _WIRE:
        return next(word for word, expression in chosen.bounds.items() if expression == _WIRE)
    return chosen.bound(values)


class _Named(dict[str, float]):
    """Numbers by name, which remembers the names that were asked for, in order."""

    def __init__(self, known: Mapping[str, float]) -> None:
        super().__init__(known)
        self.asked: dict[str, None] = {}

    def __getitem__(self, name: str) -> float:
        found = super().__getitem__(name)
        self.asked[name] = None
        return found


def _parameters(operands: Mapping[str, float], metadata: Mapping[str, Any]) -> dict[str, Parameter]:
    chip = metadata["machine"]
    found = {
        name: Parameter(name, q["value"], q["unit"], q["provenance"], q["source"])
        for name, q in chip["quantities"].items()
    }
    found |= {n: Parameter(n, g["value"], "", "job", g["meaning"]) for n, g in metadata["given"].items()}
    return found | {n: Parameter(n, v, "", OPERAND, "of this instruction") for n, v in operands.items()}


def _stretched(
    event: Event, chosen: Formula, values: Mapping[str, Any], result: str, metadata: Mapping[str, Any]
) -> tuple[list[Factor], float]:
    """What makes this rank's duration differ, and the duration; picoseconds are cut off as the simulator does."""
    if "degraded_links" in chosen.slowed_by:
        return _over_links(event, values, result, metadata)
    picoseconds, factors = round(float(values[result]) * PICOSECONDS), []
    places = {"slow_chips": event["chip"], "throttled": event["rank"]}
    words = {
        "slow_chips": f"chip {event['chip']} is slow",
        "throttled": f"the PE array of rank {event['rank']} is throttled",
    }
    times = 1.0
    for key, place in places.items():
        factor = metadata[key].get(str(place), 1.0) if key in chosen.slowed_by else 1.0
        times *= factor
        if factor != 1:
            factors.append(Factor(words[key], result, factor))
    slower = floor(picoseconds * times)
    if metadata["jitter"] and "jitter" in chosen.slowed_by and slower:
        noisy = _noisy(event, slower, metadata)
        factors.append(Factor(f"noise of rank {event['rank']}, jitter {metadata['jitter']:g}", result, noisy / slower))
        slower = noisy
    return factors, slower / PICOSECONDS


def _noisy(event: Event, picoseconds: int, metadata: Mapping[str, Any]) -> int:
    """The duration with the noise of its rank, which hangs on the numbers of the run and of the instruction in it."""
    rank, pipeline, numbering = event["rank"], metadata["pipeline"], metadata["numbering"]
    firsts = numbering["first_ids"][rank // pipeline["stride"] % pipeline["count"]]
    # What HBM serves has the number of the instruction that brought it about.
    own = (event["released_by"] if event["engine"] == Engine.HBM else event["id"]) - rank * numbering["rank_stride"]
    run = bisect_right(firsts, own) - 1
    seed = noise.seed_of(metadata["seed"], run)
    return noise.noisy(picoseconds, metadata["jitter"], seed, own - firsts[run], rank)


def _over_links(
    event: Event, values: Mapping[str, Any], result: str, metadata: Mapping[str, Any]
) -> tuple[list[Factor], float]:
    """A transfer moves its bytes at the pace of the slowest link of its group; what a rank has on its own link, at its own."""
    total = max(1, round(float(values[formula.RESULT]) * PICOSECONDS))
    wire = min(total, round(float(values[_WIRE]) * PICOSECONDS))
    shares, ranks_per_chip = metadata["degraded_links"], metadata["machine"]["ranks_per_chip"]
    group = None if result == _WIRE else groups.members(event["replica_group"] or "")
    ranks = [event["rank"]] if group is None else group.tolist()
    slowest = min(ranks, key=lambda rank: shares.get(str(rank // ranks_per_chip), 1.0))
    share = shares.get(str(slowest // ranks_per_chip), 1.0)
    moved = floor(wire / share)
    factors = [Factor(f"of the link of chip {slowest // ranks_per_chip}, {share:g} is left", _WIRE, 1 / share)] * (
        share != 1
    )
    return factors, (moved if result == _WIRE else total - wire + moved) / PICOSECONDS
