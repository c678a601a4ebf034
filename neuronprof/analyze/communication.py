"""What each collective cost, how near it came to the link's limit, how far its times spread, and how much of it nothing hid."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from neuronprof.analyze import groups, intervals
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Scope, Span, State, add
from neuronprof.terms import COMPUTE_ENGINES, Collective, Engine, Kind, WaitFor
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

_GROUP = ("name", "algorithm", "replica_group", "bytes", "op_name", "layer", "phase", "source")
_TEXTS = tuple(name for name in _GROUP if name != "bytes")
_SUMS = ("count", "transfer_ns", "wait_ns", "overlapped_ns", "exposed_ns")
_TIMES = ("transfer_each_ns", "wait_each_ns")  # of one event; with them a row of the state stands for equal events
_LIKE = ["name", "algorithm", "axis", "ranks", "bytes"]
_PLACE = ("rank", "step", "collective", "start_ts")
_LINKS = ("", "neuronlink", "efa", "neuronlink+efa")
_SPREAD = tuple(f"{what}_{which}_ns" for what in ("transfer", "wait") for which in ("p50", "p95", "max"))
_SLOWEST = ("step", "collective", *_GROUP[:4], "start_ts", "transfer_ns", "wait_ns", "rank")


@dataclass(frozen=True)
class Communication(Analyzer):
    """Collectives of the training steps: bandwidth, waiting for peers, and the time that no compute engine of the rank hid.

    bytes: message of one rank. axis: mesh axis of the group, ranks: how many it has. transfer_ns: from the arrival of the last peer to the
    end; wait_ns: before, for that peer. Times are sums over count events of all ranks; p50, p95 and max are of one event (the smallest time
    that so large a share of the events does not exceed). algorithm_bandwidth = bytes / transfer time; bus_bandwidth = that times 2(r-1)/r
    for AllReduce, (r-1)/r for AllGather, ReduceScatter and AllToAll, 1 for others, with r ranks in the group. link: what carried bytes of
    the group ('' inside a chip, or not recorded); link_share = bus_bandwidth / a rank's bandwidth on it (on EFA where nothing else
    carried any, else on NeuronLink). overlapped_ns + exposed_ns = transfer_ns; exposed: while no compute engine of the rank was busy;
    overlapped: the share that was not.
    outliers: events that transferred for longer than `outlier` times the median of those with the same name, algorithm, axis, number of
    ranks and bytes. communication_outliers: the worst `listed` of each such kind, each collective once: as the rank has it on which it
    took longest.
    """

    outlier: float = 1.5
    listed: int = 5

    name: ClassVar[str] = "communication"
    scope: ClassVar[Scope] = Scope.MOMENT
    needs: ClassVar[tuple[str, ...]] = schema.select("engine", "wait_ns", "wait_for", "collective", *_GROUP)
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"groups": (*_GROUP, *_TIMES), "ranks": ("rank",), "links": _GROUP[:3]}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "communication": (
            *_GROUP, "axis", "ranks", *_SUMS, *_SPREAD, "outliers", "overlapped", "algorithm_bandwidth", "bus_bandwidth",
            "link", "link_share",
        ),
        "communication_by_rank": ("rank", "bytes", *_SUMS),
        "communication_outliers": (*_SLOWEST, "median_ns", "times_median"),
    }  # fmt: skip

    def map(self, chip: Chip) -> State:
        """Sums by group of like collectives with equal times, sums by rank, which links carried a group, and the slowest."""
        import pandas as pd

        spans = [span for span in chip.spans if span.window.step != EVALUATION]
        empty = pd.DataFrame({name: np.zeros(0, np.int64) for name in (*_PLACE, *_GROUP, *_TIMES, *_SUMS)})
        frame = pd.concat([empty, *filter(len, map(_collectives, spans))], ignore_index=True)
        by_group = add([*_GROUP, *_TIMES], frame[[*_GROUP, *_TIMES, *_SUMS]])
        links = pd.concat([empty[list(_GROUP[:3])].assign(carried=0), *map(_carried, spans)], ignore_index=True)
        once = frame[frame["count"] > 0]
        slowest = once.assign(transfer_ns=once["transfer_each_ns"])[list(_SLOWEST)]
        for table in (by_group, links, slowest):
            for name in table.columns.intersection(list(_TEXTS)):
                table[name] = chip.events.text(name, table[name].to_numpy(np.int64))
        return {
            "groups": by_group,
            "ranks": add(["rank"], frame.assign(bytes=frame["bytes"] * frame["count"])[["rank", "bytes", *_SUMS]]),
            "links": _carriers(links),
            "slowest": self._slowest(slowest),
        }

    def combine(self, a: State, b: State) -> State:
        """Adds the sums; keeps the slowest of both."""
        import pandas as pd

        summed = {name: add(list(self.keys[name]), a[name], b[name]) for name in ("groups", "ranks")}
        filled = {name: [s[name] for s in (a, b) if len(s[name])] or [a[name]] for name in ("links", "slowest")}
        links, slowest = (pd.concat(tables, ignore_index=True) for tables in filled.values())
        return {**summed, "links": _carriers(links), "slowest": self._slowest(slowest)}

    def finish(self, state: State, context: Context) -> State:
        """Bandwidths and percentiles; the most exposed first."""
        events = state["groups"].copy()
        events["axis"] = [groups.axis(group) for group in events["replica_group"]]
        events["ranks"] = [groups.size(group) for group in events["replica_group"]]
        medians = _quantile(events, _LIKE, "transfer_each_ns", 0.5).rename("median_ns")
        medians = medians[medians > 0]  # the receiving side of a message takes no time
        events = events.join(medians, on=_LIKE)
        events["outliers"] = events["count"] * (events["transfer_each_ns"] > self.outlier * events["median_ns"])
        table = _summed(events)
        table = table.merge(state["links"], on=list(_GROUP[:3]), how="left")
        table["link"] = [_LINKS[int(code)] for code in table["carried"].fillna(0)]
        tables = {
            "communication": _bandwidths(table, context),
            "communication_by_rank": state["ranks"],
            "communication_outliers": self._outliers(state["slowest"], medians),
        }
        return {name: table[list(self.tables[name])] for name, table in tables.items()}

    def _slowest(self, events: "pd.DataFrame") -> "pd.DataFrame":
        """The longest transfers of each group, each collective once."""
        order = [
            "transfer_ns",
            "wait_ns",
            "rank",
            *(name for name in _SLOWEST if name not in ("transfer_ns", "wait_ns", "rank")),
        ]
        ranked = events.sort_values(order, ascending=[False, *[True] * (len(order) - 1)])
        once = ranked.drop_duplicates(["step", "collective", *_GROUP[:4]])
        return once.groupby(list(_GROUP[:4]), sort=False).head(self.listed).reset_index(drop=True)

    def _outliers(self, slowest: "pd.DataFrame", medians: "pd.Series[float]") -> "pd.DataFrame":
        found = slowest.assign(
            axis=[groups.axis(group) for group in slowest["replica_group"]],
            ranks=[groups.size(group) for group in slowest["replica_group"]],
        ).join(medians, on=_LIKE)
        found = found[found["transfer_ns"] > self.outlier * found["median_ns"]].copy()
        found["times_median"] = found["transfer_ns"] / found["median_ns"]
        by = ["transfer_ns", "step", "collective", "replica_group"]
        found = found.sort_values(by, ascending=[False, True, True, True])
        return found.groupby(_LIKE, sort=False, dropna=False).head(self.listed).reset_index(drop=True)


def _collectives(span: Span) -> "pd.DataFrame":
    import pandas as pd

    events = span.events
    mine = np.flatnonzero(events.among("kind", [Kind.COLLECTIVE]))
    start, end, once = span.start[mine], span.end[mine], span.is_own[mine].astype(np.int64)
    began = events["start_ts"][mine]
    whole = (np.clip(time, span.whole.start, span.whole.end) for time in (began, began + events["duration_ns"][mine]))
    busy = events.among("engine", COMPUTE_ENGINES)
    overlapped = intervals.covered(start, end, *intervals.merge(span.start[busy], span.end[busy]))
    wait = np.where(events.among("wait_for", [WaitFor.PEER])[mine], events["wait_ns"][mine], 0)
    return pd.DataFrame(
        {
            "rank": np.full(len(start), span.rank),
            "step": np.full(len(start), span.window.step),
            "collective": events["collective"][mine],
            "start_ts": began,
            **{name: events[name][mine] for name in _GROUP},
            "transfer_each_ns": -np.subtract(*whole),
            "wait_each_ns": wait,
            "count": once,
            "transfer_ns": end - start,
            "wait_ns": once * wait,
            "overlapped_ns": overlapped,
            "exposed_ns": end - start - overlapped,
        }
    )


def _carried(span: Span) -> "pd.DataFrame":
    """Which kinds of link carried bytes of each group: positions in _LINKS."""
    import pandas as pd

    events = span.events
    found = []
    for code, engine in ((1, Engine.NEURONLINK), (2, Engine.EFA)):
        rows = np.flatnonzero(events.among("engine", [engine]))
        found.append(pd.DataFrame({**{n: events[n][rows] for n in _GROUP[:3]}, "carried": code}).drop_duplicates())
    return pd.concat(found, ignore_index=True)


def _carriers(links: "pd.DataFrame") -> "pd.DataFrame":
    """One row a group: NeuronLink is bit 0, EFA bit 1."""
    import pandas as pd

    by = list(_GROUP[:3])
    bits = pd.DataFrame(
        {**{n: links[n] for n in by}, "one": links["carried"].astype(np.int64) & 1, "two": links["carried"].astype(np.int64) & 2}
    )  # fmt: skip
    found = bits.groupby(by, as_index=False, sort=True).max()
    found["carried"] = (found["one"] + found["two"]).astype(np.int64)
    return found[[*by, "carried"]]


def _quantile(events: "pd.DataFrame", by: list[str], value: str, share: float) -> "pd.Series[float]":
    """For each group the smallest value that at least this share of its events does not exceed; rows stand for `count` events."""
    ordered = events.sort_values([*by, value])
    grouped = ordered.groupby(by, dropna=False)["count"]
    reached = grouped.cumsum() >= share * grouped.transform("sum")
    return ordered[reached].groupby(by, dropna=False)[value].first()


def _summed(events: "pd.DataFrame") -> "pd.DataFrame":
    """A row a group of like collectives, the most exposed first."""
    by = list(_GROUP)
    table = events.groupby([*by, "axis", "ranks"], as_index=False, dropna=False)[[*_SUMS, "outliers"]].sum()
    for what in ("transfer", "wait"):
        for which, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0)):
            column = _quantile(events, by, f"{what}_each_ns", share).rename(f"{what}_{which}_ns")
            table = table.join(column, on=by)
    order = ["exposed_ns", "transfer_ns", *by]
    return table.sort_values(order, ascending=[False, False, *[True] * len(by)], ignore_index=True)


def _bandwidths(table: "pd.DataFrame", context: Context) -> "pd.DataFrame":
    times = table["transfer_ns"].where(table["transfer_ns"] > 0)
    table["overlapped"] = table["overlapped_ns"] / times
    table["algorithm_bandwidth"] = table["bytes"] * table["count"] / (times / 1e9)
    factors = [_bus_factor(name, ranks) for name, ranks in zip(table["name"], table["ranks"], strict=True)]
    table["bus_bandwidth"] = table["algorithm_bandwidth"] * np.array(factors, float)
    limit = [context.limit("efa_bandwidth" if link == "efa" else "neuronlink_bandwidth") for link in table["link"]]
    table["link_share"] = table["bus_bandwidth"] / np.array(limit, float)
    return table


def _bus_factor(name: str, ranks: float) -> float:
    """Bytes that cross a rank's links for each byte of the message, as NCCL's tests and Neuron Explorer count them."""
    if name == Collective.ALL_REDUCE:
        return 2 * (ranks - 1) / ranks
    if name in (Collective.ALL_GATHER, Collective.REDUCE_SCATTER, Collective.ALL_TO_ALL):
        return (ranks - 1) / ranks
    return 1.0
