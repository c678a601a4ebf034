"""Where the chips of a job stand in its UltraServers, and what is known of each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import everyrank

if TYPE_CHECKING:
    import pandas as pd

TIME, BYTES, SHARE = "time", "bytes", "share"
_SQUARE, _GAP = 4, 0.6  # chips along a side of a torus; free between two of them, in chips
_EDGE, _REACH = 0.43, 0.6  # where a link begins and ends, from the centre of a chip
_WIDE = 2.4  # the whole picture, in its heights


@dataclass(frozen=True)
class Topology:
    """How chips are joined. domain: chips that NeuronLink joins; shape: 'switch' or 'torus' (4 x 4 chips, and rings of such squares)."""

    domain: int
    shape: str
    ranks_per_chip: int

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "Topology | None":
        """What a trace tells; None where it does not."""
        machine = metadata.get("machine") or {}
        domain = ((machine.get("quantities") or {}).get("neuronlink.domain") or {}).get("value")
        if not domain or not machine.get("ranks_per_chip"):
            return None
        return cls(int(domain), str(machine.get("topology") or "switch"), int(machine["ranks_per_chip"]))


@dataclass(frozen=True)
class Plan:
    """All places of the UltraServers that a job uses, a row each, chip by chip. x, y: of its centre, chips apart, y downwards.

    servers: left, top, right and bottom of each UltraServer; links: x0, y0, x1, y1 of the torus inside, none for a switch.
    """

    chip: NDArray[np.int64]
    server: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    servers: NDArray[np.float64]
    links: NDArray[np.float64]


def plan(topology: Topology, chips: int) -> Plan:
    """The places of the UltraServers in which the first `chips` chips stand: of each in rows, and the UltraServers in rows of them."""
    inside, links = _torus(topology.domain) if topology.shape == "torus" else _rows(topology.domain)
    size = inside.max(axis=0) + 1
    count = -(-chips // topology.domain)
    step = size + np.array([1.5, 2.8])  # room around each, and for its name above
    beside = min(range(1, count + 1), key=lambda n: abs(math.log(n * step[0] / (-(-count // n) * step[1]) / _WIDE)))
    origin = np.stack([np.arange(count) % beside, np.arange(count) // beside], axis=1) * step
    chip = np.arange(count * topology.domain)
    server, place = np.divmod(chip, topology.domain)
    at = origin[server] + inside[place]
    joined = (np.tile(origin, 2)[:, None, :] + links[None]).reshape(-1, 4) if len(links) else np.zeros((0, 4))
    return Plan(chip, server, at[:, 0], at[:, 1], np.hstack([origin - [0.7, 1.9], origin + size - 0.3]), joined)


def _rows(domain: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Chips behind a switch have no places of their own: rows that are as long as their number allows."""
    columns = next(n for n in range(math.isqrt(domain - 1) + 1, domain + 1) if domain % n == 0)
    number = np.arange(domain)
    return np.stack([number % columns, number // columns], axis=1).astype(float), np.zeros((0, 4))


def _torus(domain: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squares of 4 x 4 chips, each chip joined to its neighbours; links that go around stick out at the edges."""
    number = np.arange(domain)
    square, place = np.divmod(number, _SQUARE * _SQUARE)
    beside = math.isqrt(-(-domain // _SQUARE**2) - 1) + 1
    corner = np.stack([square % beside, square // beside], axis=1) * (_SQUARE + _GAP)
    at = corner + np.stack([place % _SQUARE, place // _SQUARE], axis=1)
    links = []
    for x, y in at.tolist():
        ways = ((1, 0), (-1, 0), (0, 1), (0, -1))
        links += [(x + _EDGE * dx, y + _EDGE * dy, x + _REACH * dx, y + _REACH * dy) for dx, dy in ways]
    return at, np.array(links)


@dataclass(frozen=True)
class Measured:
    """What is known of each chip: values of all chips of the job, NaN where the trace does not tell; kind: time, bytes or share."""

    kind: str
    values: NDArray[np.float32]


def measures(
    topology: Topology, world: int, totals: "pd.DataFrame", traffic: "pd.DataFrame", links: "pd.DataFrame"
) -> dict[str, Measured]:
    """By what a picture can be coloured: what each rank sent and how busy its links are, of ranks in the trace; its times, of all.

    Args:
        topology: of the job.
        world: ranks of the job.
        totals: the ranks table of the trace.
        traffic: of the analyzers.
        links: of the analyzers.
    """
    found: dict[str, Measured] = {}
    between = traffic[traffic["source"] // topology.ranks_per_chip != traffic["destination"] // topology.ranks_per_chip]
    if len(between):
        sent = between.groupby("source")["bytes"].sum()
        found["bytes sent to other chips"] = Measured(BYTES, _of_chips(topology, world, sent, "sum"))
    for link, rows in links.groupby("link", observed=True):
        if rows["busy_ns"].sum():
            busy = rows.set_index("rank")["busy"]
            found[f"{link} busy"] = Measured(SHARE, _of_chips(topology, world, busy, "max"))
    if len(totals):
        import pandas as pd

        every = everyrank.over_steps(totals)
        for name, values in every.values.items():
            found[name] = Measured(TIME, _of_chips(topology, world, pd.Series(values.mean(axis=1), every.ranks), "max"))
    return {name: one for name, one in found.items() if np.nanmax(one.values, initial=0) > 0}


def _of_chips(topology: Topology, world: int, of_ranks: "pd.Series[Any]", how: str) -> NDArray[np.float32]:
    """Values of ranks, by rank, as those of their chips: the sum, or that of the rank with the largest."""
    chips = -(-world // topology.ranks_per_chip)
    together = of_ranks.groupby(of_ranks.index.to_numpy(np.int64) // topology.ranks_per_chip).agg(how)
    out = np.full(chips, np.nan, np.float32)
    out[together.index.to_numpy(np.int64)] = together.to_numpy(np.float32)
    return out
