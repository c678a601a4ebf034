"""Graph: the operators of a recorded run as columns, with the signatures, buffers, modules and source lines they refer to."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from neuronprof.graph.groups import ReplicaGroup
from neuronprof.terms import Role

DTYPE_BYTES = {
    "float64": 8, "int64": 8, "uint64": 8, "complex64": 8, "complex128": 16,
    "float32": 4, "int32": 4, "uint32": 4,
    "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2,
    "int8": 1, "uint8": 1, "bool": 1,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One operand as an operator saw it. shape and stride count elements; stride is None for a sparse tensor."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None
    offset: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, without gaps between strides."""
        return self.numel * DTYPE_BYTES.get(self.dtype, 4)


@dataclass(frozen=True)
class Signature:
    """An operator with its operand layouts and attributes: everything that decides its cost.

    name: PyTorch's operator with its overload, 'aten.mm.default'. inputs: tensor arguments, lists flattened, in order.
    attributes: the other arguments as plain Python values, flattened, in order. mutates: positions in inputs that are written in place.
    view: the outputs alias an input and nothing is computed.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Any, ...] = ()
    mutates: tuple[int, ...] = ()
    view: bool = False

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.inputs, self.outputs, self.attributes, self.mutates, self.view))

    def __hash__(self) -> int:
        """Counted once: an optimizer's signature lists every weight of the model, and every rewrite of a graph looks it up."""
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        """Without the hash, which is another one in another process."""
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}


@dataclass(frozen=True, slots=True)
class Buffer:
    """One storage.

    birth: index of the operator that made it (-1: before the first recorded one); death: the operator after which it is free (-1: alive
    at the end). name: of the parameter or optimizer state, where known.
    """

    nbytes: int
    birth: int = -1
    death: int = -1
    role: Role = Role.ACTIVATIONS
    name: str = ""


@dataclass(frozen=True, slots=True)
class CollectiveCall:
    """A collective operator, as every rank of its stage issues it.

    kind: a terms.Collective. nbytes: the larger side of one rank's message (what an all-gather makes, what a reduce-scatter takes, what a
    send moves). group: who takes part. peer: of a Send or Recv, the pipeline stage at the other end; messages between two stages arrive in
    the order in which they were sent; number: its place in that order, 0 where it does not matter any more. uneven: of an all-to-all, the
    most that a rank sends or takes over the mean. stream: 0 where the next operators wait for it, 1 for weights gathered ahead of their
    use, 2 for gradients reduced behind backward.
    """

    kind: str
    nbytes: int
    group: ReplicaGroup
    peer: int = 0
    uneven: float = 1.0
    stream: int = 0
    number: int = 0

    @property
    def axis(self) -> str:
        """The mesh axis of the group."""
        return self.group.axis

    @property
    def ranks(self) -> int:
        """Size of the group."""
        return self.group.size


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of operators [start, stop): kind 'step' (a training step or an inference pass) or 'evaluation'; step is its number or -1."""

    kind: str
    step: int
    start: int
    stop: int


@dataclass(frozen=True)
class Graph:
    """Operators in the order in which the script issued them.

    Columns, one entry an operator (n = len): signature int32 (index in signatures), phase int8 (index in terms.PHASES), module, source,
    region int32 (index in modules, sources, regions; entry 0 of each is ''), forward int32 (the forward operator whose gradient this is,
    -1: none). operand_ptr int64[n + 1] and operands int32: buffer of each tensor operand, inputs then outputs, in signature order.
    collectives: operator index to CollectiveCall.
    """

    signatures: tuple[Signature, ...]
    signature: np.ndarray
    phase: np.ndarray
    module: np.ndarray
    source: np.ndarray
    region: np.ndarray
    forward: np.ndarray
    operand_ptr: np.ndarray
    operands: np.ndarray
    buffers: tuple[Buffer, ...]
    modules: tuple[str, ...] = ("",)
    sources: tuple[str, ...] = ("",)
    regions: tuple[str, ...] = ("",)
    collectives: dict[int, CollectiveCall] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.signature)

    def inputs(self, op: int) -> list[int]:
        """Buffers that operator op reads or mutates, in signature order."""
        return self._operands[self._starts[op] : self._splits[op]]

    def outputs(self, op: int) -> list[int]:
        """Buffers of operator op's results (a view's or an in-place operator's result is its input's buffer)."""
        return self._operands[self._splits[op] : self._starts[op + 1]]

    # Lists, because operators are asked for one by one, and numbers come out of an array slowly.
    @cached_property
    def _operands(self) -> list[int]:
        return self.operands.tolist()

    @cached_property
    def _starts(self) -> list[int]:
        return self.operand_ptr.tolist()

    @cached_property
    def _splits(self) -> list[int]:
        inputs = np.array([len(s.inputs) for s in self.signatures] or [0], np.int64)
        return (self.operand_ptr[:-1] + inputs[self.signature]).tolist()

    def content(self) -> bytes:
        """A digest of what the operators do and on which buffers, with buffers numbered by first use: equal for equal steps."""
        _, first, inverse = np.unique(self.operands, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        used = self.operands[np.sort(first)].tolist()
        digest = hashlib.sha256(rank[inverse].tobytes())
        for column in (self.signature, self.phase, self.module, self.source, self.region):
            digest.update(np.ascontiguousarray(column).tobytes())
        for b in used:
            buffer = self.buffers[b]
            digest.update(f"{buffer.nbytes} {buffer.birth} {buffer.death} {buffer.role}".encode())
        return digest.digest()

    def slice(self, start: int, stop: int) -> "Graph":
        """The operators [start, stop) as a graph of their own.

        Buffers keep their index; births and deaths are shifted (-1: outside); a buffer that is not alive in the slice has 0 bytes.
        """
        return self._sliced(start, stop, tuple(_shifted(b, start, stop) for b in self.buffers))

    def piece(self, start: int, stop: int) -> "Graph":
        """As slice, for one of the pieces that a graph is cut into: what each adds to memory and frees adds up to the whole.

        A buffer has bytes where an operator of the piece touches it, makes it or is the last before it is freed, and in the first piece
        where it is there from the start.
        """
        first, last = int(self.operand_ptr[start]), int(self.operand_ptr[stop])
        births, deaths = self._lives
        lives = ((births >= start) & (births < stop)) | ((deaths >= start) & (deaths < stop))
        if start == 0:
            lives |= births < 0
        buffers = [_NOTHING] * len(self.buffers)
        for index in {*self.operands[first:last].tolist(), *np.flatnonzero(lives).tolist()} - {-1}:
            buffers[index] = _shifted(self.buffers[index], start, stop + 1)
        return self._sliced(start, stop, tuple(buffers))

    @cached_property
    def _lives(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([b.birth for b in self.buffers], np.int64), np.array([b.death for b in self.buffers], np.int64)

    def _sliced(self, start: int, stop: int, buffers: tuple[Buffer, ...]) -> "Graph":
        first, last = int(self.operand_ptr[start]), int(self.operand_ptr[stop])
        forward = self.forward[start:stop] - start
        return replace(
            self,
            signature=self.signature[start:stop],
            phase=self.phase[start:stop],
            module=self.module[start:stop],
            source=self.source[start:stop],
            region=self.region[start:stop],
            forward=np.where((self.forward[start:stop] < 0) | (forward < 0), -1, forward).astype(np.int32),
            operand_ptr=self.operand_ptr[start : stop + 1] - first,
            operands=self.operands[first:last],
            buffers=buffers,
            collectives={op - start: call for op, call in self.collectives.items() if start <= op < stop},
        )


_NOTHING = Buffer(0)


def _shifted(buffer: Buffer, start: int, stop: int) -> Buffer:
    if buffer.birth >= stop or 0 <= buffer.death < start:
        return replace(buffer, nbytes=0, birth=-1, death=-1)
    birth = buffer.birth - start if start <= buffer.birth else -1
    # What is freed after the slice's last operator was alive at its end: whether that was before the next one began, nobody can tell.
    death = buffer.death - start if 0 <= buffer.death < stop - 1 else -1
    return replace(buffer, birth=birth, death=death)


@dataclass(frozen=True)
class Recording:
    """What capture hands on: the graph, its segments in order, and what the user should be told.

    values: 'real' or 'none' (what was asked, or what the default picked); parameters: number of trainable elements; notes: each softening
    applied to record without values, with its count; script, argv: what was run; framework: that of the script, torch or jax.

    Of a script that distributes itself: world: its ranks; axes: its mesh, name to size; stages: a recording of each pipeline stage (empty:
    all ranks run `graph`), of which graph and segments are the first's; pipeline: (count, stride) of the digit of the rank number that is
    the stage.
    """

    graph: Graph
    segments: tuple[Segment, ...]
    values: str
    parameters: int
    notes: dict[str, int] = field(default_factory=dict)
    script: str = ""
    argv: tuple[str, ...] = ()
    world: int = 1
    axes: dict[str, int] = field(default_factory=dict)
    stages: tuple["Recording", ...] = ()
    pipeline: tuple[int, int] = (1, 1)
    framework: str = "torch"
