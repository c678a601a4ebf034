"""`neuronprof collectives`: how long collectives take on a simulated machine, as nccom-test and nccl-tests print it for a real one."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from neuronprof import units
from neuronprof.errors import NeuronprofError
from neuronprof.terms import Algorithm, Collective

if TYPE_CHECKING:
    from neuronprof.graph.groups import ReplicaGroup
    from neuronprof.simulate.job import Job

_KINDS = {
    "all_reduce": Collective.ALL_REDUCE,
    "all_gather": Collective.ALL_GATHER,
    "reduce_scatter": Collective.REDUCE_SCATTER,
    "all_to_all": Collective.ALL_TO_ALL,
    "permute": Collective.PERMUTE,
    "send_recv": Collective.SEND_RECV,
    "broadcast": Collective.BROADCAST,
    "barrier": Collective.BARRIER,
}
_COLUMNS = ("size", "count", "type", "algorithm", "time", "algbw", "busbw")
_HEAD = ("size (B)", "count", "type", "algorithm", "time (us)", "algbw (GB/s)", "busbw (GB/s)")
_LARGEST = 2**50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add = parser.add_argument
    add("--chip", default="trainium4", help="a chip of 'neuronprof chips', or a TOML file (default: %(default)s)")
    add("--ranks", type=int, metavar="N", help="ranks that take part (default: those of an UltraServer)")
    add("--stride", type=int, default=1, metavar="N", help="their distance in rank numbers; as many groups run at once")
    add("--lnc", type=int, help="physical NeuronCores in a logical one, which is one rank (default: the chip's)")
    add("--sizes", default="1K..1G", help="bytes, as 1K..1G (doubling) or 1K,64K,25M (default: %(default)s)")
    add("--collective", choices=list(_KINDS), default="all_reduce", help="(default: %(default)s)")
    add(
        "--algorithm",
        choices=list(Algorithm),
        help="one for all sizes that it can do (default: as the library chooses)",
    )
    add("--dtype", default="float32", metavar="TYPE", help="of the elements that are counted (default: %(default)s)")
    add("--uneven", type=float, default=1.0, metavar="X", help="of all_to_all: the busiest rank sends X times the mean")
    add("--oversubscription", type=float, default=1.0, metavar="X", help="of EFA between UltraServers (default: 1)")
    add(
        "--json", action="store_true", help="print one JSON object: times in us, bandwidths in GB/s, bytes a rank sends"
    )


def run(args: argparse.Namespace) -> int:
    """Prints a row a size."""
    job, group = _placed(args)
    rows = _rows(job, group, args)
    if args.json:
        about = {"chip": job.chip.name, "collective": args.collective, "ranks": group.size, "stride": args.stride}
        print(json.dumps({**about, "rows": rows}))
        return 0
    print(f"{args.collective} on {job.chip.name}: {_where(job, group)}\n")
    cells = [_HEAD, *([_shown(row[column]) for column in _COLUMNS] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    return 0


def _placed(args: argparse.Namespace) -> "tuple[Job, ReplicaGroup]":
    """The job and the first of its groups."""
    from neuronprof.graph.groups import ReplicaGroup
    from neuronprof.hardware.load import load_chip
    from neuronprof.pipeline.machine import check_world, cores_a_rank
    from neuronprof.simulate.job import Job

    chip = load_chip(args.chip)
    lnc = cores_a_rank(chip, args.lnc)
    ranks = int(chip.neuronlink.domain) * chip.ranks(lnc) if args.ranks is None else args.ranks
    if ranks < 1 or args.stride < 1:
        raise NeuronprofError("--ranks and --stride must be at least 1.")
    if args.uneven < 1:
        raise NeuronprofError(f"--uneven {args.uneven:g} is below 1; the busiest rank sends no less than the mean.")
    check_world(chip, lnc, ranks * args.stride)
    job = Job(chip, lnc, ranks * args.stride, algorithm=args.algorithm, oversubscription=args.oversubscription)
    return job, ReplicaGroup("x", ((ranks, args.stride),) if ranks > 1 else ())


def _rows(job: "Job", group: "ReplicaGroup", args: argparse.Namespace) -> list[dict[str, Any]]:
    from neuronprof.graph.ir import DTYPE_BYTES, CollectiveCall
    from neuronprof.simulate.network import Network

    if args.dtype not in DTYPE_BYTES:
        raise NeuronprofError(f"There is no dtype '{args.dtype}'; choose one of {', '.join(DTYPE_BYTES)}.")
    kind, network = _KINDS[args.collective], Network(job)
    rows = []
    for size in _sizes(args.sizes):
        found = network.transfer(CollectiveCall(kind, size, group, uneven=args.uneven))
        rate = size * 1e3 / found.picoseconds  # bytes a picosecond are TB/s
        rows.append(
            {
                "size": size,
                "count": int(size // DTYPE_BYTES[args.dtype]),
                "type": args.dtype,
                "algorithm": str(found.algorithm),
                "time": found.picoseconds / 1e6,
                "algbw": rate,
                "busbw": rate * _bus_factor(kind, group.size),
                "neuronlink_bytes": found.neuronlink,
                "efa_bytes": found.efa,
            }
        )
    return rows


def _bus_factor(kind: Collective, ranks: int) -> float:
    """Bytes on the busiest link over the size, by which bandwidths of different collectives compare (nccl-tests, PERFORMANCE.md)."""
    if kind in (Collective.PERMUTE, Collective.SEND_RECV, Collective.BROADCAST, Collective.BARRIER):
        return 1.0
    return (2 if kind is Collective.ALL_REDUCE else 1) * (ranks - 1) / ranks


def _sizes(text: str) -> list[int]:
    """Sizes from '1K..1G' or '1K,64K'."""
    first, dots, last = text.partition("..")
    sizes = [units.parse_size(part) for part in ([first, last] if dots else text.split(","))]
    if not all(0 < size <= _LARGEST for size in sizes) or (dots and sizes[1] < sizes[0]):
        raise NeuronprofError(f"--sizes {text} cannot be read; write it like 1K..1G, the smaller first, or 1K,64K,25M.")
    if not dots:
        return sizes
    return [sizes[0] << n for n in range((sizes[1] // sizes[0]).bit_length())]


def _where(job: "Job", group: "ReplicaGroup") -> str:
    """What the group covers, in words."""
    import numpy as np

    chips = np.unique(group.members(0) // job.ranks_per_chip)
    servers = len(np.unique(chips // int(job.chip.neuronlink.domain)))
    counted = [(group.size, "rank"), (len(chips), "chip"), (servers, "UltraServer")]
    return ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counted)


def _shown(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
