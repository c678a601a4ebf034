"""What collectives and messages cost on the links: their formulas, made of one part for each kind of link that they go over.

A part's name says its link and protocol ('neuronlink', 'efa.quick'), that of a hierarchical collective all of its parts, joined by '+'. Its
operands: hops: latencies in a row; carried: bytes of the busiest rank, each counted on every link that it passes; sharing: ranks that share
its chip's links, times how uneven the shares of the message are; beside, after: bytes that the busiest rank moves inside its chip while the
link is busy, and before or after that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from neuronprof.formula import RESULT, Formula

WIRE, MESSAGE = "wire", "message"
QUICK, IN_SWITCH = ".quick", ".in_switch"
_OPERANDS = ("hops", "carried", "sharing", "beside", "after")
_SLOWED = ("degraded_links",)


@dataclass(frozen=True, slots=True)
class Part:
    """A collective on one kind of link: its formula by name, with operands, and seconds on the wire and besides."""

    name: str
    operands: Mapping[str, float]
    wire: float
    fixed: float


def part(name: str, numbers: Mapping[str, float], operands: Mapping[str, float], oversubscription: float) -> Part:
    """A part that stands alone. numbers: of the chip."""
    values = {**numbers, **operands, "oversubscription": oversubscription}
    found = formula(name, _lacks(numbers)).evaluate(values)
    return Part(name, operands, found[WIRE], found[RESULT] - found[WIRE])


def composed(parts: list[Part]) -> tuple[str, dict[str, float]]:
    """Name and operands of the formula of parts one after another."""
    if len(parts) == 1:
        return parts[0].name, dict(parts[0].operands)
    operands = {f"{key}_{n}": value for n, one in enumerate(parts, 1) for key, value in one.operands.items()}
    return "+".join(one.name for one in parts), operands


def formula_of(name: str, numbers: Mapping[str, float]) -> Formula:
    """The formula with a name, on a chip with these numbers."""
    return formula(name, _lacks(numbers))


def _lacks(numbers: Mapping[str, float]) -> frozenset[str]:
    """What a chip's library may lack and has not, of all that formulas ask for."""
    optional = (
        "neuronlink.local_bandwidth",
        "efa.local_bandwidth",
        "efa.pieces",
        "neuronlink.quick_start",
        "efa.quick_start",
    )
    return frozenset(name for name in optional if not numbers[name])


@lru_cache(maxsize=256)
def formula(name: str, lacks: frozenset[str]) -> Formula:
    """The formula with a name; lacks: numbers that the chip does not have."""
    if name == MESSAGE:
        return _message(lacks)
    names = name.split("+")
    if len(names) == 1:
        return _finished(_part(name, "", lacks), "latency", "inside")
    marks = [f"_{n}" for n in range(1, len(names) + 1)]
    lines = [line for one, mark in zip(names, marks, strict=True) for line in _part(one, mark, lacks)]
    latency, inside, wires = ([f"{what}{mark}" for mark in marks] for what in ("latency", "inside", WIRE))
    whole = " + ".join(wires)
    if "efa.pieces" in lacks:
        lines.append(f"{WIRE} = {whole}")
    else:
        # Where a message is cut into pieces, one piece's phases run beside the next one's.
        lines.append(f"{WIRE} = ({whole}) / efa.pieces + max({', '.join(wires)}) * (1 - 1 / efa.pieces)")
    return _finished(lines, " + ".join(latency), " + ".join(inside))


def _part(name: str, mark: str, lacks: frozenset[str]) -> list[str]:
    """Lines for one link: bytes over its bandwidth, its start and hops, and what moves inside the chip."""
    link, _, protocol = name.partition(".")
    start = f"{link}.quick_start" if f".{protocol}" == QUICK else f"{link}.start"
    reached = f"{link}.{protocol}_efficiency" if protocol else f"{link}.efficiency"
    hops, carried, sharing, beside, after = (f"{operand}{mark}" for operand in _OPERANDS)
    shared = f"{sharing} * oversubscription" if link == "efa" else sharing
    inside = f"max(0, {beside} / {link}.local_bandwidth - {WIRE}{mark}) + {after} / {link}.local_bandwidth"
    return [
        f"{WIRE}{mark} = {carried} * {shared} / ({link}.bandwidth * {reached})",
        f"latency{mark} = {start} + {hops} * {link}.latency if {hops} > 0 else 0",
        f"inside{mark} = {'0' if f'{link}.local_bandwidth' in lacks else inside}",
    ]


def _message(lacks: frozenset[str]) -> Formula:
    """Messages between ranks, all at once: near, far: those of the chip that sends most, over NeuronLink and over EFA.

    A message has no steps between which it could stand, so the quick protocol's start and the ordinary one's bandwidth are taken.
    """
    start = {
        link: f"{link}.{'' if f'{link}.quick_start' in lacks else 'quick_'}start" for link in ("neuronlink", "efa")
    }
    inside = "0" if "neuronlink.local_bandwidth" in lacks else f"max(0, beside / neuronlink.local_bandwidth - {WIRE})"
    lines = [
        "inner = near * bytes * hops / (neuronlink.bandwidth * neuronlink.efficiency)",
        "outer = far * bytes * oversubscription / (efa.bandwidth * efa.efficiency)",
        f"{WIRE} = max(inner, outer)",
        f"latency = {start['efa']} + efa.latency if far > 0 else {start['neuronlink']} + hops * neuronlink.latency",
        f"inside = {inside}",
    ]
    return _finished(lines, "latency", "inside")


def _finished(lines: list[str], latency: str, inside: str) -> Formula:
    bounds = {"bytes on the link": WIRE, "latency": latency, "bytes inside the chip": inside}
    return Formula("\n".join([*lines, f"{RESULT} = {latency} + {inside} + {WIRE}"]), bounds, _SLOWED)
