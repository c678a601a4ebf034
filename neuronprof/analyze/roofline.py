"""How near each operator and each step came to the machine's limits."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuronprof.analyze import intervals
from neuronprof.analyze.analyzer import EVALUATION, Analyzer, Chip, Context, Scope, Span, State, add
from neuronprof.analyze.grouping import Groups
from neuronprof.terms import COMPUTE_ENGINES, Engine
from neuronprof.trace import schema

if TYPE_CHECKING:
    import pandas as pd

_OPERATOR = ("op_name", "layer", "phase")
_TRACKS = {**{engine.value: engine for engine in COMPUTE_ENGINES}, "dma": Engine.DMA}
_BUSY = tuple(f"{track}_ns" for track in _TRACKS)
_SUMS = ("flops", "bytes", "time_ns", *_BUSY)
_STEP = ("step_time_ns", "model_flops", "hardware_flops", "model_bytes", "moved_bytes")


@dataclass(frozen=True)
class Roofline(Analyzer):
    """FLOPs and HBM bytes of each operator and each step against the peaks of a rank.

    An operator is op_name, layer and phase over all training steps and ranks. time_ns: while any of its compute or DMA events ran (union);
    <engine>_ns: the same for one engine. flops: executed; bytes: moved by DMA between HBM and SBUF. intensity = flops / bytes;
    flops_per_second = flops / time_ns; peak_share: of the peak of the dtype in which most of the operator's FLOPs ran; roof_share: of
    min(peak, intensity * HBM bandwidth); bound: the engine that was busy longest, hbm for DMA.
    Steps (evaluation is step -1): mfu = model_flops / (step time * peak), hfu = hardware_flops / (step time * peak), with the peak of bf16,
    or of fp8 where most tensor FLOPs ran in fp8 (peak_dtype); mbu = model_bytes / (step time * HBM bandwidth); hbm_share counts
    all bytes moved. ridge: the intensity above which the peak is the limit.
    """

    name: ClassVar[str] = "roofline"
    scope: ClassVar[Scope] = Scope.MOMENT
    needs: ClassVar[tuple[str, ...]] = schema.select("engine", "bytes", "flops", "dtype", *_OPERATOR)
    keys: ClassVar[dict[str, tuple[str, ...]]] = {
        "operators": _OPERATOR,
        "dtypes": (*_OPERATOR, "dtype"),
        "steps": ("step", "dtype"),
        "ranks": ("step",),
    }
    tables: ClassVar[dict[str, tuple[str, ...]]] = {
        "roofline": (*_OPERATOR, "dtype", *_SUMS, "intensity", "flops_per_second", "peak_share", "roof_share", "bound"),
        "roofline_steps": ("step", *_STEP, "peak_dtype", "mfu", "hfu", "mbu", "hbm_share", "intensity", "ridge"),
    }

    def map(self, chip: Chip) -> State:
        """Sums by operator, by operator and dtype, and by step."""
        training = [_operators(span) for span in chip.spans if span.window.step != EVALUATION]
        steps = [_step(span) for span in chip.spans]
        operators = _named(chip, training, [*_OPERATOR, "dtype", *_SUMS])
        return {
            "operators": add(list(_OPERATOR), operators.drop(columns="dtype")),
            "dtypes": add([*_OPERATOR, "dtype"], operators[[*_OPERATOR, "dtype", "flops"]]),
            "steps": add(["step", "dtype"], _named(chip, steps, ["step", "dtype", "tensor_flops"])),
            "ranks": add(["step"], _named(chip, steps, ["step", "ranks", "moved_bytes", "flops"])),
        }

    def finish(self, state: State, context: Context) -> State:
        """Rates and shares from the sums; what took longest first."""
        tables = {"roofline": _roofs(state, context), "roofline_steps": _steps(state, context)}
        return {name: table[list(self.tables[name])] for name, table in tables.items()}


def peak_kind(dtype: str) -> str:
    """The key of machine.rank.peak_flops for an element type: fp8, fp32 or bf16."""
    if dtype.startswith("float8"):
        return "fp8"
    return "fp32" if dtype in ("float32", "float64") else "bf16"


def _peak(context: Context, kind: str) -> float:
    return float((context.machine.get("peak_flops") or {}).get(kind) or np.nan)


def _named(chip: Chip, parts: list[dict[str, NDArray[Any]]], names: list[str]) -> "pd.DataFrame":
    """Columns of all parts one below the other, codes turned into strings."""
    import pandas as pd

    frame = pd.DataFrame(
        {name: np.concatenate([part[name] for part in parts] or [np.zeros(0, np.int64)]) for name in names}
    )
    for name in chip.events.words.keys() & set(names):
        frame[name] = chip.events.text(name, frame[name].to_numpy())
    return frame


def _operators(span: Span) -> dict[str, NDArray[Any]]:
    """Sums of each operator of the span; an operator has a row a dtype, times and bytes in its first."""
    mine = span.of(_TRACKS.values())
    events, start, end = mine.events, mine.start, mine.end
    work = Groups(*(events[name] for name in (*_OPERATOR, "engine", "dtype")))
    *names, engine, dtype = work.keys
    place_of = {str(engine): place for place, engine in enumerate(_TRACKS.values())}
    place = np.array([place_of.get(word, 0) for word in (*events.words["engine"], "")])[engine]
    dma = place == place_of[Engine.DMA]
    operators = Groups(*names)
    pairs = Groups(operators.position, dtype)
    operator, dtypes = pairs.keys
    first = np.diff(operator, prepend=-1) > 0
    time = intervals.union_by(operators.position[work.position], start, end, len(operators))
    tracks = operators.position * len(_TRACKS) + place
    busy = intervals.union_by(tracks[work.position], start, end, len(operators) * len(_TRACKS))
    columns = {name: key[operator] for name, key in zip(_OPERATOR, operators.keys, strict=True)}
    columns |= {"dtype": dtypes, "flops": pairs.sum(np.where(dma, 0, work.sum(mine.once("flops"))))}
    columns["bytes"] = np.where(first, operators.sum(np.where(dma, work.sum(mine.once("bytes")), 0))[operator], 0)
    columns["time_ns"] = np.where(first, time[operator], 0)
    for track, name in enumerate(_BUSY):
        columns[name] = np.where(first, busy[operator * len(_TRACKS) + track], 0)
    known = columns["op_name"] >= 0
    return {name: column[known] for name, column in columns.items()}


def _step(span: Span) -> dict[str, NDArray[Any]]:
    """Tensor FLOPs by dtype, bytes and FLOPs of a span, in rows of one step; bytes and FLOPs stand in the first row."""
    tensor, dma, compute = (span.of(engines) for engines in ([Engine.TENSOR], [Engine.DMA], COMPUTE_ENGINES))
    by_dtype = Groups(tensor.events["dtype"])
    dtypes = np.append(by_dtype.keys[0], -1)
    once = np.arange(len(dtypes)) == 0
    return {
        "step": np.full(len(dtypes), span.window.step),
        "dtype": dtypes,
        "tensor_flops": np.append(by_dtype.sum(tensor.once("flops")), 0),
        "ranks": (once & span.first).astype(np.int64),
        "moved_bytes": np.where(once, dma.once("bytes").sum(), 0),
        "flops": np.where(once, compute.once("flops").sum(), 0),
    }


def _most(table: "pd.DataFrame", by: list[str], measure: str) -> "pd.DataFrame":
    """The row of each `by` with the largest measure."""
    return table.sort_values([measure, "dtype"], ascending=[False, True]).drop_duplicates(by)[[*by, "dtype"]]


def _roofs(state: State, context: Context) -> "pd.DataFrame":
    table = state["operators"].merge(_most(state["dtypes"], list(_OPERATOR), "flops"), on=list(_OPERATOR))
    table = table.sort_values(["time_ns", *_OPERATOR], ascending=[False, True, True, True], ignore_index=True)
    peak = np.array([_peak(context, peak_kind(dtype)) for dtype in table["dtype"]], float)
    table["intensity"] = table["flops"] / table["bytes"].replace(0, np.nan)
    table["flops_per_second"] = table["flops"] * 1e9 / table["time_ns"].replace(0, np.nan)
    table["peak_share"] = table["flops_per_second"] / peak
    roof = np.fmin(peak, table["intensity"] * context.limit("hbm_bandwidth"))
    table["roof_share"] = table["flops_per_second"] / np.where(roof > 0, roof, np.nan)
    busiest = table[list(_BUSY)].to_numpy().argmax(axis=1) if len(table) else []
    table["bound"] = (
        [("hbm" if track == "dma" else track) for track in np.array(list(_TRACKS))[busiest]] if len(table) else []
    )
    return table


def _steps(state: State, context: Context) -> "pd.DataFrame":
    import pandas as pd

    rows = [(w.step, w.time_ns, w.model_flops, w.hardware_flops, w.model_bytes, 1) for w in context.windows]
    windows = pd.DataFrame(
        rows, columns=["step", "step_time_ns", "model_flops", "hardware_flops", "model_bytes", "windows"]
    )
    table = add(["step"], windows).merge(state["ranks"], on="step")
    table = table.merge(_most(state["steps"], ["step"], "tensor_flops"), on="step")
    table["ranks"] //= table["windows"]
    table["moved_bytes"] = table["moved_bytes"] / table["ranks"]
    executed = table["flops"] / table["ranks"]
    table["hardware_flops"] = table["hardware_flops"].where(table["hardware_flops"] > 0, executed)
    known = table[["model_flops", "model_bytes"]].replace(0, np.nan)
    table["peak_dtype"] = ["fp8" if peak_kind(dtype) == "fp8" else "bf16" for dtype in table["dtype"]]
    time = table["step_time_ns"].replace(0, np.nan)
    peak = np.array([_peak(context, kind) for kind in table["peak_dtype"]], float)
    bandwidth = context.limit("hbm_bandwidth")
    table["mfu"] = known["model_flops"] * 1e9 / (time * peak)
    table["hfu"] = table["hardware_flops"] * 1e9 / (time * peak)
    table["mbu"] = known["model_bytes"] * 1e9 / (time * bandwidth)
    table["hbm_share"] = table["moved_bytes"] * 1e9 / (time * bandwidth)
    table["intensity"] = executed / table["moved_bytes"].replace(0, np.nan)
    table["ridge"] = peak / bandwidth
    return table
