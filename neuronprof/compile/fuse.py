"""Operator fusion: chains that share one iteration space run tile by tile, and what passes between them never leaves SBUF."""

from dataclasses import dataclass, field

from neuronprof.graph.ir import DTYPE_BYTES, Graph, Tensor
from neuronprof.graph.ops import OpKind, Work
from neuronprof.terms import Role

# Operators that may be the first of a group, and those that may join one.
_ANCHORS = frozenset({OpKind.GEMM, OpKind.ELEMENTWISE, OpKind.REDUCTION, OpKind.FILL, OpKind.RANDOM, OpKind.COPY})
_JOINERS = frozenset({OpKind.ELEMENTWISE, OpKind.REDUCTION, OpKind.COPY})
# A tile of every operand has to stand in SBUF at once, twice: with so many bytes an element, tiles are still long enough for DMA.
_MOST_BYTES_AN_ELEMENT = 48
_MOST_OPS = 24
_LARGEST_COUNTER = 8  # bytes of a 0-dimensional tensor


@dataclass(slots=True)
class Group:
    """Operators that run as one. elements: the iteration space; reads and writes: buffers that cross the group's border."""

    index: int
    ops: list[int]
    kind: OpKind
    phase: int
    elements: int
    reads: dict[int, int] = field(default_factory=dict)  # buffer: bytes needed of it
    writes: dict[int, int] = field(default_factory=dict)  # buffer: bytes written of it
    pieces: dict[int, int] = field(default_factory=dict)  # buffer: bytes of its shortest contiguous run
    reduced: bool = False


@dataclass(slots=True)
class _Access:
    """The groups that last wrote and last read a buffer."""

    writer: int = -1
    reader: int = -1


def fuse(graph: Graph, works: list[Work]) -> list[Group]:
    """Groups the operators of a graph, in an order that keeps every dependency.

    works: cost of each of graph.signatures. Views and operators that move nothing belong to no group. An operator joins the group that
    made one of its inputs when both walk the same elements, no later group touches what it needs, and the group stays small enough.
    """
    groups: list[Group] = []
    launched = 0  # the first group that the host launches after it last waited; nothing moves in front of it
    access: dict[int, _Access] = {}
    signature, phases = graph.signature.tolist(), graph.phase.tolist()
    runs = [[contiguous_bytes(t) for t in (*s.inputs, *s.outputs)] for s in graph.signatures]
    for op in _on_device(graph, works):
        sig = signature[op]
        work = works[sig]
        reads = _sized(graph.inputs(op), work.reads)
        writes = _writes(graph, op, sig, work)
        group = _joined(groups, access, work, phases[op], reads, writes)
        if group is None or group.index < launched:
            group = Group(len(groups), [], work.kind, phases[op], work.elements)
            groups.append(group)
        _add(group, op, work, reads, writes)
        for buffer, run in zip((*graph.inputs(op), *graph.outputs(op)), runs[sig], strict=False):
            group.pieces[buffer] = min(group.pieces.get(buffer, run), run)
        if work.kind is OpKind.HOST_SYNC:
            launched = group.index + 1
        for buffer in reads:
            access.setdefault(buffer, _Access()).reader = group.index
        for buffer in writes:
            access.setdefault(buffer, _Access()).writer = group.index
    return groups


def _on_device(graph: Graph, works: list[Work]) -> list[int]:
    """The operators that the device runs: not views, and not the arithmetic on the optimizer's step counters, which the host keeps."""
    host: set[int] = {
        i for i, b in enumerate(graph.buffers) if b.role is Role.OPTIMIZER_STATE and 0 < b.nbytes <= _LARGEST_COUNTER
    }
    device = []
    for op, sig in enumerate(graph.signature.tolist()):
        inputs = graph.inputs(op)
        if inputs and host.issuperset(inputs):
            host.update(graph.outputs(op))
        elif works[sig].kind is not OpKind.VIEW and (works[sig].writes or works[sig].reads):
            device.append(op)
    return device


def contiguous_bytes(tensor: Tensor) -> int:
    """Bytes of the longest run that stands contiguously in memory, whatever the order of the dimensions."""
    if tensor.stride is None:
        return tensor.nbytes
    run = 1
    for stride, extent in sorted(zip(tensor.stride, tensor.shape, strict=True)):
        if extent > 1 and stride == run:
            run *= extent
        elif extent > 1 and stride > run:
            break
    return run * DTYPE_BYTES.get(tensor.dtype, 4)


def _sized(buffers: list[int], sizes: tuple[int, ...]) -> dict[int, int]:
    sized: dict[int, int] = {}
    for buffer, nbytes in zip(buffers, sizes, strict=False):
        if buffer >= 0 and nbytes:
            sized[buffer] = max(sized.get(buffer, 0), nbytes)
    return sized


def _writes(graph: Graph, op: int, sig: int, work: Work) -> dict[int, int]:
    inputs = graph.inputs(op)
    return _sized([*graph.outputs(op), *(inputs[i] for i in graph.signatures[sig].mutates)], work.writes)


def _joined(
    groups: list[Group],
    access: dict[int, _Access],
    work: Work,
    phase: int,
    reads: dict[int, int],
    writes: dict[int, int],
) -> Group | None:
    """The group that this operator may join: the latest one it depends on, if nothing stands in the way."""
    if work.kind not in _JOINERS:
        return None
    needed = [access[b].writer for b in reads if b in access]
    overwritten = [max(access[b].writer, access[b].reader) for b in writes if b in access]
    latest = max([*needed, *overwritten], default=-1)
    if latest < 0 or latest not in needed:
        return None
    group = groups[latest]
    moved = sum(group.reads.values()) + sum(group.writes.values()) + sum(reads.values()) + sum(writes.values())
    fits = moved <= _MOST_BYTES_AN_ELEMENT * max(work.elements, 1) and len(group.ops) < _MOST_OPS
    return group if fits and _compatible(group, work, phase) else None


def _compatible(group: Group, work: Work, phase: int) -> bool:
    if group.phase != phase or group.kind not in _ANCHORS or group.elements != work.elements:
        return False
    # A reduction needs whole rows, which a matmul finishes only tile by tile; two reductions may reduce different axes.
    return work.kind is not OpKind.REDUCTION or not (group.reduced or group.kind is OpKind.GEMM)


def _add(group: Group, op: int, work: Work, reads: dict[int, int], writes: dict[int, int]) -> None:
    group.ops.append(op)
    group.reduced |= work.kind is OpKind.REDUCTION
    for buffer, nbytes in reads.items():
        if buffer not in group.writes:
            group.reads[buffer] = max(group.reads.get(buffer, 0), nbytes)
    for buffer, nbytes in writes.items():
        group.writes[buffer] = max(group.writes.get(buffer, 0), nbytes)
