"""What goes over each link, when, and how near the link came to its limit."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import intervals, series
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Scope, State
from neuronprof.terms import Engine, Kind
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

_ENGINES = (Engine.NEURONLINK, Engine.EFA)
_LINK = ("rank", "chip", "link")
_BUCKET = ("start_ts", "duration_ns")


@dataclass(frozen=True)
class Links(Analyzer):
    """Bytes that each rank sends over its NeuronLinks and EFA during training steps, and the share of the time in which they are busy.

    link: neuronlink or efa, all of a rank's links of that kind together. bandwidth = bytes / busy_ns, limit: a rank's share of the chip's,
    limit_share = bandwidth / limit. busy = busy_ns / the time from the first step's start to the last one's end. links_over_time: the same
    time in `buckets` equal parts; a transfer's bytes are spread evenly over its duration. Bytes and busy_ns of a link's buckets add up to
    those of the link, but for what lies outside of the steps.
    """

    buckets: int = 100

    name: ClassVar[str] = "links"
    scope: ClassVar[Scope] = Scope.RANK
    only: ClassVar[dict[str, tuple[str, ...]]] = {"kind": (Kind.TRANSFER,), "engine": _ENGINES}
    needs: ClassVar[tuple[str, ...]] = schema.select("chip", "engine", "bytes")
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"buckets": (*_LINK, *_BUCKET)}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "links": (*_LINK, "transfers", "bytes", "busy_ns", "busy", "bandwidth", "limit", "limit_share"),
        "links_over_time": (*_LINK, *_BUCKET, "bytes", "busy_ns", "busy"),
    }

    def map(self, chip: Chip) -> State:
        """Bytes and busy nanoseconds of each link in each bucket; a transfer counts where it starts."""
        import pandas as pd

        windows = [window for window in chip.windows if window.step != EVALUATION]
        names = [*_LINK, *_BUCKET, "transfers", "bytes", "busy_ns"]
        if not windows:
            return {"buckets": pd.DataFrame({name: np.zeros(0, np.int64) for name in names})}
        low, high = min(w.start for w in windows), max(w.end for w in windows)
        edges = np.unique(low + (high - low) * np.arange(self.buckets + 1, dtype=np.int64) // self.buckets)
        frames = [pd.DataFrame({name: np.zeros(0, np.int64) for name in names})]
        events = chip.events
        sent = events.among("engine", _ENGINES) & events.among("kind", [Kind.TRANSFER])
        rows = events.take(sent & (events["step"] != EVALUATION))
        for place, engine in enumerate(_ENGINES):
            of_engine = rows.take(rows.among("engine", [engine]))
            for rank in np.unique(of_engine["rank"]).tolist():
                mine = of_engine.take(of_engine["rank"] == rank)
                columns = _buckets(mine["start_ts"], mine["duration_ns"], mine["bytes"], edges)
                frames.append(pd.DataFrame({"rank": rank, "chip": mine["chip"][0], "link": place, **columns}))
        return {"buckets": pd.concat(frames, ignore_index=True)}

    def finish(self, state: State, context: Context) -> State:
        """Shares and bandwidths from the sums."""
        over_time = state["buckets"].copy()
        over_time["busy"] = over_time["busy_ns"] / over_time["duration_ns"]
        table = over_time.groupby(list(_LINK), as_index=False)[["transfers", "bytes", "busy_ns", "duration_ns"]].sum()
        table["busy"] = table["busy_ns"] / table["duration_ns"]
        table["bandwidth"] = table["bytes"] * 1e9 / table["busy_ns"].where(table["busy_ns"] > 0)
        limits = np.array([context.limit("neuronlink_bandwidth"), context.limit("efa_bandwidth")])
        table["limit"] = limits[table["link"].to_numpy(np.int64)]
        table["limit_share"] = table["bandwidth"] / table["limit"]
        tables = {"links": table, "links_over_time": over_time}
        return {name: _named(frame)[list(self.tables[name])] for name, frame in tables.items()}


def _named(table: "pd.DataFrame") -> "pd.DataFrame":
    return table.assign(link=[_ENGINES[int(place)].value for place in table["link"]])


def _buckets(
    start: NDArray[np.int64], duration: NDArray[np.int64], amount: NDArray[np.int64], edges: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    """Whole bytes and busy nanoseconds between each two edges; whole bytes so that they add up."""
    rate = series.rate(start, duration, amount)
    area = np.concatenate(([0.0], np.cumsum(rate.value[:-1] * np.diff(rate.time)) / 1e9))
    sent = np.rint(np.interp(edges, rate.time, area)).astype(np.int64)
    union = intervals.merge(start, start + duration)
    busy = intervals.covered(edges[:-1], edges[1:], *union)
    bucket = np.clip(np.searchsorted(edges, start, side="right") - 1, 0, len(edges) - 2)
    return {
        "start_ts": edges[:-1],
        "duration_ns": np.diff(edges),
        "transfers": np.bincount(bucket, minlength=len(edges) - 1),
        "bytes": np.diff(sent),
        "busy_ns": busy,
    }
