"""Operator fusion: chains that share one iteration space run tile by tile, and what passes between them never leaves SBUF."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from neuronprof.graph.ir import DTYPE_BYTES, Graph, Signature, Tensor
from neuronprof.graph.ops import OpKind, Work
from neuronprof.terms import Role

# Operators that may be the first of a group, and those that may join one.
_CHAINS = frozenset({OpKind.ELEMENTWISE, OpKind.REDUCTION, OpKind.FILL, OpKind.RANDOM, OpKind.COPY})
_ANCHORS = _CHAINS | {OpKind.GEMM}
_JOINERS = frozenset({OpKind.ELEMENTWISE, OpKind.REDUCTION, OpKind.COPY})
# A tile of every operand has to stand in SBUF at once, twice: with so many bytes an element, tiles are still long enough for DMA.
_MOST_BYTES_AN_ELEMENT = 48
_MOST_OPS = 24
_LARGEST_COUNTER = 8  # bytes of a 0-dimensional tensor


@dataclass(slots=True)
class Group:
    """Operators that run as one, tile by tile of whole rows.

    elements: the iteration space; reads and writes: buffers that cross the group's border; pieces: bytes of the shortest contiguous run
    in each; partial: results that are complete only after the last tile.
    """

    index: int
    ops: list[int]
    kind: OpKind
    phase: int
    elements: int
    reads: dict[int, int] = field(default_factory=dict)  # buffer: bytes needed of it
    writes: dict[int, int] = field(default_factory=dict)  # buffer: bytes written of it
    parts: dict[tuple[int, int], int] = field(default_factory=dict)  # (buffer, offset): bytes needed from there
    pieces: dict[int, int] = field(default_factory=dict)
    partial: set[int] = field(default_factory=set)
    reduced: bool = False


@dataclass(slots=True)
class _Access:
    """The groups that last wrote and last read a buffer."""

    writer: int = -1
    reader: int = -1


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An operator that looks for its group, with the bytes that it reads and writes of each buffer.

    parts: bytes that it reads from each place, (buffer, offset): the thirds of a fused projection are three of them.
    """

    op: int
    signature: Signature
    work: Work
    phase: int
    reads: dict[int, int]
    writes: dict[int, int]
    parts: dict[tuple[int, int], int]


def fuse(graph: Graph, works: list[Work], *, into_products: bool = True, chains: bool = True) -> list[Group]:
    """Groups the operators of a graph, in an order that keeps every dependency.

    works: cost of each of graph.signatures. Views and operators that move nothing belong to no group. An operator joins the group that
    made one of its inputs when both walk the same rows, no later group touches what it needs, and the group stays small enough.
    into_products: chains may follow a matrix product in its group; without it, only adding the result to a sum may. chains: operators are
    fused at all.
    """
    anchors = _ANCHORS if into_products else _CHAINS
    groups: list[Group] = []
    launched = 0  # the first group that the host launches after it last waited; nothing moves in front of it
    access: dict[int, _Access] = {}
    runs = [[contiguous_bytes(t) for t in (*s.inputs, *s.outputs)] for s in graph.signatures]
    for found in _on_device(graph, works):
        group = _joined(groups, access, found, anchors) if chains else None
        if group is None or group.index < launched:
            group = Group(len(groups), [], found.work.kind, found.phase, found.work.elements)
            groups.append(group)
        _add(graph, group, found)
        operands = (*graph.inputs(found.op), *graph.outputs(found.op))
        for buffer, run in zip(operands, runs[graph.signature[found.op]], strict=False):
            group.pieces[buffer] = min(group.pieces.get(buffer, run), run)
        if found.work.kind is OpKind.HOST_SYNC:
            launched = group.index + 1
        for buffer in found.reads:
            access.setdefault(buffer, _Access()).reader = group.index
        for buffer in found.writes:
            access.setdefault(buffer, _Access()).writer = group.index
    return groups


def _on_device(graph: Graph, works: list[Work]) -> Iterator[_Candidate]:
    """The operators that the device runs: not views, and not the arithmetic on the optimizer's step counters, which the host keeps."""
    counters = {
        i for i, b in enumerate(graph.buffers) if b.role is Role.OPTIMIZER_STATE and 0 < b.nbytes <= _LARGEST_COUNTER
    }
    host, phases = set(counters), graph.phase.tolist()
    for op, sig in enumerate(graph.signature.tolist()):
        inputs, outputs, signature, work = graph.inputs(op), graph.outputs(op), graph.signatures[sig], works[sig]
        if inputs and host.issuperset(inputs):
            host.update(outputs)
        elif work.kind is not OpKind.VIEW and (work.writes or work.reads):
            written = [*outputs, *(inputs[i] for i in signature.mutates)]
            parts = _parts(inputs, signature.inputs, work.reads, counters)
            writes = _sized(written, work.writes, counters)
            yield _Candidate(op, signature, work, phases[op], _read(parts, graph), writes, parts)


def _parts(
    buffers: list[int], tensors: tuple[Tensor, ...], sizes: tuple[int, ...], counters: set[int]
) -> dict[tuple[int, int], int]:
    parts: dict[tuple[int, int], int] = {}
    for buffer, tensor, nbytes in zip(buffers, tensors, sizes, strict=False):
        if buffer >= 0 and nbytes and buffer not in counters:
            place = buffer, tensor.offset
            parts[place] = max(parts.get(place, 0), nbytes)
    return parts


def _read(parts: dict[tuple[int, int], int], graph: Graph) -> dict[int, int]:
    """Bytes of each buffer; parts that overlap are no more than the whole of it."""
    reads: dict[int, int] = {}
    for (buffer, _), nbytes in parts.items():
        before = reads.get(buffer, 0)
        reads[buffer] = max(before, nbytes, min(before + nbytes, graph.buffers[buffer].nbytes))
    return reads


def _sized(buffers: list[int], sizes: tuple[int, ...], counters: set[int]) -> dict[int, int]:
    sized: dict[int, int] = {}
    for buffer, nbytes in zip(buffers, sizes, strict=False):
        if buffer >= 0 and nbytes and buffer not in counters:
            sized[buffer] = max(sized.get(buffer, 0), nbytes)
    return sized


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


def _joined(
    groups: list[Group], access: dict[int, _Access], found: _Candidate, anchors: frozenset[OpKind]
) -> Group | None:
    """The group that this operator may join: the latest one it depends on, if nothing stands in the way."""
    if found.work.kind not in _JOINERS:
        return None
    needed = [access[b].writer for b in found.reads if b in access]
    overwritten = [max(access[b].writer, access[b].reader) for b in found.writes if b in access]
    latest = max([*needed, *overwritten], default=-1)
    if latest < 0 or latest not in needed:
        return None
    group = groups[latest]
    moved = sum(map(sum, (group.reads.values(), group.writes.values(), found.reads.values(), found.writes.values())))
    fits = moved <= _MOST_BYTES_AN_ELEMENT * max(group.elements, 1) and len(group.ops) < _MOST_OPS
    may = group.kind in anchors or _accumulates(group, found)
    return group if fits and may and _compatible(group, found) else None


def _accumulates(group: Group, found: _Candidate) -> bool:
    """Whether an operator adds a product's result to a sum, which the product can do itself."""
    return found.signature.name.startswith("aten.add_.Tensor") and group.kind is OpKind.GEMM and len(group.ops) == 1


def _compatible(group: Group, found: _Candidate) -> bool:
    """Whether an operator can run inside each tile of the group."""
    if group.phase != found.phase or not group.partial.isdisjoint(found.reads):
        return False
    if found.work.kind is OpKind.REDUCTION:
        # A matmul finishes its result tile by tile; a reduction needs whole rows.
        return group.kind is not OpKind.GEMM and group.elements == found.work.elements
    # What a reduction leaves of each row has fewer elements; arithmetic on it belongs to the same tile.
    per_row = (
        group.reduced
        and group.elements % max(found.work.elements, 1) == 0
        and group.writes.keys() >= found.reads.keys()
    )
    return group.elements == found.work.elements or per_row


def _add(graph: Graph, group: Group, found: _Candidate) -> None:
    group.ops.append(found.op)
    for place, nbytes in found.parts.items():
        if place[0] not in group.writes:
            group.parts[place] = max(group.parts.get(place, 0), nbytes)
    group.reads = _read(group.parts, graph)
    for buffer, nbytes in found.writes.items():
        group.writes[buffer] = max(group.writes.get(buffer, 0), nbytes)
    if found.work.kind is OpKind.REDUCTION:
        group.reduced = True
        row_wise = [_is_row_wise(found.signature, t) for t in found.signature.outputs]
        group.partial.update(b for b, done in zip(found.writes, row_wise, strict=False) if not done)


def _is_row_wise(signature: Signature, result: Tensor) -> bool:
    """A result of a reduction that is complete with each row: as large as the input, or one number for each of its rows."""
    whole = max(signature.inputs, key=lambda t: t.numel, default=result)
    kept = tuple(result.shape)
    while kept and kept[-1] == 1:
        kept = kept[:-1]
    return result.numel == whole.numel or (bool(kept) and kept == whole.shape[: len(kept)])
