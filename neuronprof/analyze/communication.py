"""What each collective cost, how near it came to the link's limit, and how much of it nothing hid."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from neuronprof.analyze import intervals
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Span, State, add
from neuronprof.terms import COMPUTE_ENGINES, Collective, Kind, WaitFor
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

_GROUP = ("name", "algorithm", "replica_group", "bytes", "op_name", "layer", "phase", "source")
_TEXTS = tuple(name for name in _GROUP if name != "bytes")
_SUMS = ("count", "transfer_ns", "wait_ns", "overlapped_ns", "exposed_ns")


@dataclass(frozen=True)
class Communication(Analyzer):
    """Collectives of the training steps: bandwidth, waiting for peers, and the time that no compute engine of the rank hid.

    bytes: message of one rank. transfer_ns: from the arrival of the last peer to the end; wait_ns: before, for that peer.
    algorithm_bandwidth = bytes / transfer time; bus_bandwidth = that times 2(r-1)/r for AllReduce, (r-1)/r for AllGather, ReduceScatter
    and AllToAll, 1 for others, with r ranks in the group; link_share = bus_bandwidth / NeuronLink bandwidth of a rank. overlapped_ns +
    exposed_ns = transfer_ns; exposed: while no compute engine of the rank was busy. Times are sums over count events of all ranks.
    """

    name: ClassVar[str] = "communication"
    needs: ClassVar[tuple[str, ...]] = schema.select("engine", "wait_ns", "wait_for", *_GROUP)
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"groups": _GROUP, "ranks": ("rank",)}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "communication": (*_GROUP, "ranks", *_SUMS, "algorithm_bandwidth", "bus_bandwidth", "link_share"),
        "communication_by_rank": ("rank", "bytes", *_SUMS),
    }

    def map(self, chip: Chip) -> State:
        """Sums by group of like collectives, and by rank."""
        import pandas as pd

        spans = [span for span in chip.spans if span.window.step != EVALUATION]
        empty = pd.DataFrame({name: np.zeros(0, np.int64) for name in ("rank", *_GROUP, *_SUMS)})
        frame = pd.concat([empty, *filter(len, map(_collectives, spans))], ignore_index=True)
        groups = add(list(_GROUP), frame[[*_GROUP, *_SUMS]])
        for name in _TEXTS:
            groups[name] = chip.events.text(name, groups[name].to_numpy())
        return {"groups": groups, "ranks": add(["rank"], frame[["rank", "bytes", *_SUMS]])}

    def finish(self, state: State, context: Context) -> State:
        """Bandwidths from the sums; the most exposed first."""
        table = state["groups"].sort_values(
            ["exposed_ns", "transfer_ns", *_GROUP], ascending=[False, False, *[True] * len(_GROUP)]
        )
        table = table.reset_index(drop=True)
        table["ranks"] = [_ranks(group) for group in table["replica_group"]]
        seconds = table["transfer_ns"].replace(0, np.nan) / 1e9
        table["algorithm_bandwidth"] = table["bytes"] * table["count"] / seconds
        factors = [_bus_factor(name, ranks) for name, ranks in zip(table["name"], table["ranks"], strict=True)]
        table["bus_bandwidth"] = table["algorithm_bandwidth"] * np.array(factors, float)
        table["link_share"] = table["bus_bandwidth"] / context.limit("neuronlink_bandwidth")
        return {
            "communication": table[list(self.tables["communication"])],
            "communication_by_rank": state["ranks"][list(self.tables["communication_by_rank"])],
        }


def _collectives(span: Span) -> "pd.DataFrame":
    import pandas as pd

    events = span.events
    mine = events.among("kind", [Kind.COLLECTIVE])
    busy = events.among("engine", COMPUTE_ENGINES)
    start, end = span.start[mine], span.end[mine]
    overlapped = intervals.covered(start, end, *intervals.merge(span.start[busy], span.end[busy]))
    peer = events.among("wait_for", [WaitFor.PEER])[mine]
    return pd.DataFrame(
        {
            "rank": np.full(len(start), span.rank),
            **{name: events[name][mine] for name in _GROUP},
            "count": np.ones(len(start), np.int64),
            "transfer_ns": end - start,
            "wait_ns": np.where(peer, events["wait_ns"][mine], 0),
            "overlapped_ns": overlapped,
            "exposed_ns": end - start - overlapped,
        }
    )


def _ranks(group: str) -> float:
    """Members of a replica group: 'dp:0-7' has 8, 'tp:0,4' 2, 'dp:0-24/8' (every eighth) 4; NaN if the text does not say."""
    members = 0
    for part in group.rpartition(":")[2].split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?(?:/(\d+))?\s*", part)
        if not match:
            return np.nan
        members += (int(match[2] or match[1]) - int(match[1])) // int(match[3] or 1) + 1
    return float(members)


def _bus_factor(name: str, ranks: float) -> float:
    """Bytes that cross a rank's links for each byte of the message, as NCCL's tests and Neuron Explorer count them."""
    if name == Collective.ALL_REDUCE:
        return 2 * (ranks - 1) / ranks
    if name in (Collective.ALL_GATHER, Collective.REDUCE_SCATTER, Collective.ALL_TO_ALL):
        return (ranks - 1) / ranks
    return 1.0
