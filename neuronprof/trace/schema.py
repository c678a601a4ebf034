"""Every column of the trace, written once: its type, unit and meaning. Everything else derives from it."""

from dataclasses import dataclass

import pyarrow as pa

# MAJOR: a column is removed or changes meaning; MINOR: a column or a sort of event is added; PATCH: wording.
VERSION = "1.2.0"

_STRINGS = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its Arrow type, unit ('' for none), meaning, and the value where an event's source has none."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    default: int | None = None


COLUMNS = (
    Column("id", pa.int64(), "", "unique in the trace; grows in program order within a rank"),
    Column("step", pa.int32(), "", "recorded training step, from 0; -1 for evaluation between steps", 0),
    Column("chip", pa.int32(), "", "chip, counted over the whole job", 0),
    Column("core", pa.int16(), "", "logical NeuronCore in the chip; -1 for a track of the whole chip", 0),
    Column("rank", pa.int32(), "", "rank of the job", 0),
    Column(
        "engine",
        _STRINGS,
        "",
        "tensor, vector, scalar, gpsimd, sync, dma, cc, hbm, neuronlink, efa or host; of memory events hbm, sbuf or psum",
    ),
    Column("queue", pa.int16(), "", "DMA queue, link, collective stream or HBM track in that engine", 0),
    Column("kind", _STRINGS, "", "compute, transfer, collective, memory or marker"),
    Column(
        "name",
        _STRINGS,
        "",
        "opcode, collective, or what memory holds: in HBM a category of tensors, in SBUF resident or tiles, in PSUM partial_sums",
    ),
    Column("start_ts", pa.int64(), "ns", "start, from the start of the first recorded step"),
    Column("duration_ns", pa.int64(), "ns", "rounded end minus rounded start"),
    Column(
        "wait_ns", pa.int64(), "ns", "how long the event stood at the head of its queue, ready but for one thing", 0
    ),
    Column("wait_for", _STRINGS, "", "that thing: data, dma, hbm, link, peer, sbuf or none"),
    Column("op", pa.int32(), "", "operator of the graph: a row of the operators table; -1 for none", -1),
    Column("op_name", _STRINGS, "", "the operator's name, aten.mm"),
    Column("layer", _STRINGS, "", "module path"),
    Column("phase", _STRINGS, "", "forward, backward, recompute, optimizer, evaluation or other"),
    Column("source", _STRINGS, "", "the user's source line, file:line"),
    Column(
        "bytes",
        pa.int64(),
        "B",
        "bytes moved; for memory events the bytes held from start to end, of tiles and partial_sums the most in that time",
        0,
    ),
    Column("flops", pa.int64(), "FLOP", "executed floating-point operations; a multiply-add is 2", 0),
    Column("dtype", _STRINGS, "", "element type of the operands"),
    Column("collective", pa.int64(), "", "joins the events of one collective over ranks; -1 for none", -1),
    Column("replica_group", _STRINGS, "", "the collective's group as mesh axis and members, dp:0-7"),
    Column("algorithm", _STRINGS, "", "ring, kangaring, mesh, single-step-mesh, rdh, in-switch or hierarchical"),
    Column("released_by", pa.int64(), "", "id of the event whose end let this one start; -1 for none", -1),
    Column("deps", pa.list_(pa.int64()), "", "all predecessors, as backward distances in id"),
    Column("region", _STRINGS, "", "the user's region, outer/inner; torch_neuronx.trace and torch.compile name theirs"),
    Column(
        "operands",
        _STRINGS,
        "",
        "what the duration was computed from: a formula of the metadata and its operands; of a DMA also how many of its bytes move only "
        "for want of room in SBUF: reread by one product, reload for another operator; null: measured, or none",
    ),
)

REQUIRED = ("engine", "kind", "name", "start_ts", "duration_ns")  # without these an event says nothing

NAMES = tuple(c.name for c in COLUMNS)
BY_NAME = {c.name: c for c in COLUMNS}
LATER = ("operands",)  # columns that traces of an earlier version lack
STRINGS = tuple(c.name for c in COLUMNS if c.type == _STRINGS)
SORT = ("chip", "core", "engine", "queue", "start_ts")

ARROW = pa.schema(
    [
        pa.field(c.name, c.type, metadata={"unit": c.unit, "meaning": c.meaning} if c.unit else {"meaning": c.meaning})
        for c in COLUMNS
    ]
)


# JSON: run, machine, mesh, segments; formulas: text, bounds and slowed_by of each (neuronprof.formula), given: value and meaning of what
# they name besides operands and the machine's numbers; numbering: how ids count, for whoever needs an instruction's number; pipeline:
# count and stride of the stages, passes: by stage the first instruction of each pass and its micro-batch, -1 for none.
METADATA_KEY = b"neuronprof"
OPERATORS_KEY = b"neuronprof.operators"  # base64 of an Arrow IPC stream: the operators table
RANKS_KEY = b"neuronprof.ranks"  # the same: the ranks table, where it is small; else RANKS_FILE beside the parts
RANKS_FILE = "_ranks.parquet"  # readers of folders leave out names that begin with an underscore

# What every rank of the job did in every step, also those whose events are not written. A row a rank, step and engine: busy_ns the time
# that the engine worked; wait_peer_ns how long the rank waited for others in the step (on all engines together), end_ts when it was done.
RANKS = pa.schema(
    [
        ("step", pa.int32()),
        ("rank", pa.int32()),
        ("chip", pa.int32()),
        ("core", pa.int16()),
        ("stage", pa.int16()),
        ("engine", pa.dictionary(pa.int32(), pa.string())),
        ("busy_ns", pa.int64()),
        ("wait_peer_ns", pa.int64()),
        ("end_ts", pa.int64()),
    ]
)

OPERATORS = pa.schema(
    [
        ("op", pa.int32()),
        ("op_name", pa.string()),
        ("layer", pa.string()),
        ("phase", pa.string()),
        ("source", pa.string()),
        ("region", pa.string()),
        ("shapes", pa.string()),
        ("dtype", pa.string()),
        ("flops", pa.int64()),
        ("bytes", pa.int64()),
    ]
)


def select(*names: str) -> tuple[str, ...]:
    """Checks column names where they are written, so that a misspelt one fails at import.

    Raises:
        KeyError: a name that is not a column.
    """
    for name in names:
        if name not in NAMES:
            raise KeyError(name)
    return names
