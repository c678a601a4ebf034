"""Program: the instructions that compile writes and simulate runs, as columns over in-order queues."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from neuronprof.graph.ir import CollectiveCall
from neuronprof.terms import Engine


class Opcode(IntEnum):
    """Instructions, with what their four operands mean.

    MATMUL: batch, stationary (M), contraction (K), moving (N). ACTIVATE (scalar), TENSOR_TENSOR (two inputs), TENSOR_SCALAR (one input),
    TENSOR_REDUCE (vector), CUSTOM_OP (gpsimd): elements, passes over them, 1 for one that follows another of its row without a start of its
    own, 0. MATMUL_TILE, LDWEIGHTS (single instructions of an operator in detail): PE arrays side by side, M, K, N of each. DMA opcodes:
    bytes, contiguous bytes of it, and on chips that run kernels Access, 0; on others what of the bytes moves only for want of room in SBUF:
    read again by one product, loaded again for another operator (of a spill this is all, and left at 0). ATTENTION, ATTENTION_BACKWARD
    (fused, of chips that run kernels): as MATMUL, its batch counts all products over all heads. COLLECTIVE, SEND, RECV: bytes of one rank's
    message, ranks, 0, 0. LAUNCH (host): 1 for a single kernel, 0, 0, 0. HOST_SYNC: 0, 0, 0, 0.
    """

    MATMUL = 0
    ACTIVATE = 1
    TENSOR_TENSOR = 2
    TENSOR_SCALAR = 3
    TENSOR_REDUCE = 4
    CUSTOM_OP = 5
    DMA_LOAD = 6
    DMA_STORE = 7
    SPILL_SAVE = 8
    SPILL_RELOAD = 9
    DMA_GATHER = 10
    COPY_TO_DEVICE = 11
    COPY_TO_HOST = 12
    COLLECTIVE = 13
    LAUNCH = 14
    HOST_SYNC = 15
    SEND = 16
    RECV = 17
    ATTENTION = 18
    ATTENTION_BACKWARD = 19
    MATMUL_TILE = 20
    LDWEIGHTS = 21


class Access(IntEnum):
    """How a kernel goes through HBM."""

    STREAMING = 0
    ROWS = 1
    IRREGULAR = 2


PRODUCTS = (Opcode.MATMUL, Opcode.MATMUL_TILE, Opcode.ATTENTION, Opcode.ATTENTION_BACKWARD)
DMA_OPCODES = (Opcode.DMA_LOAD, Opcode.DMA_STORE, Opcode.SPILL_SAVE, Opcode.SPILL_RELOAD, Opcode.DMA_GATHER,
               Opcode.COPY_TO_DEVICE, Opcode.COPY_TO_HOST)  # fmt: skip


class Queue(IntEnum):
    """The in-order queues of one logical NeuronCore: the engines, DMA rings by what they carry, streams of collectives, the host.

    CC: collectives that the next operators wait for; CC_GATHER: weights gathered ahead of their use; CC_REDUCE: gradients reduced behind
    backward; CC_SEND, CC_RECV: what pipeline stages send each other. WEIGHTS: loads the next stationary tile while the PE array works.
    """

    TENSOR = 0
    VECTOR = 1
    SCALAR = 2
    GPSIMD = 3
    DMA_WEIGHTS = 4
    DMA_ACTIVATIONS = 5
    DMA_STORES = 6
    DMA_HOST = 7
    CC = 8
    CC_GATHER = 9
    CC_REDUCE = 10
    CC_SEND = 11
    CC_RECV = 12
    HOST = 13
    WEIGHTS = 14


def among(kinds: type[IntEnum], chosen: Iterable[IntEnum]) -> np.ndarray:
    """Whether each opcode, or queue, is one of those chosen, bool by its number: a column of them is looked up faster than searched."""
    table = np.zeros(len(kinds), bool)
    table[list(chosen)] = True
    return table


QUEUE_TRACKS: dict[Queue, tuple[Engine, int]] = {
    Queue.TENSOR: (Engine.TENSOR, 0),
    Queue.VECTOR: (Engine.VECTOR, 0),
    Queue.SCALAR: (Engine.SCALAR, 0),
    Queue.GPSIMD: (Engine.GPSIMD, 0),
    Queue.DMA_WEIGHTS: (Engine.DMA, 0),
    Queue.DMA_ACTIVATIONS: (Engine.DMA, 1),
    Queue.DMA_STORES: (Engine.DMA, 2),
    Queue.DMA_HOST: (Engine.DMA, 3),
    Queue.CC: (Engine.CC, 0),
    Queue.CC_GATHER: (Engine.CC, 1),
    Queue.CC_REDUCE: (Engine.CC, 2),
    Queue.CC_SEND: (Engine.CC, 3),
    Queue.CC_RECV: (Engine.CC, 4),
    Queue.HOST: (Engine.HOST, 0),
    Queue.WEIGHTS: (Engine.TENSOR, 1),
}


@dataclass(frozen=True)
class Program:
    """Instructions of one rank for one segment, in an order in which every dependency points backwards.

    Columns (n = len): opcode int8, queue int8, op int32 (operator that it works for), dtype int8 (index in dtypes), operands int64[n, 4]
    (see Opcode), nbytes int64, flops int64. deps_ptr int64[n + 1] and deps int32: predecessors of instruction i, absolute; deps_space
    bool: the dependency waits for room in SBUF or PSUM, not for data. collectives: instruction to its call.
    memory: HBM level changes, int64[m, 3]: instruction (after whose end; -1: at the start), index in terms.ROLES, bytes held from then on.
    on_chip: what fills SBUF and PSUM, int64[k, 4]: index in terms.HELD, first and last instruction, bytes held while any of these and
    of those between runs; of what is resident, the level from the first instruction's start until the next such row.
    """

    opcode: np.ndarray
    queue: np.ndarray
    op: np.ndarray
    dtype: np.ndarray
    operands: np.ndarray
    nbytes: np.ndarray
    flops: np.ndarray
    deps_ptr: np.ndarray
    deps: np.ndarray
    deps_space: np.ndarray
    memory: np.ndarray
    dtypes: tuple[str, ...]
    collectives: dict[int, CollectiveCall] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)  # operators without a cost rule, with their count
    operators: int = 0  # of the graph that was compiled
    on_chip: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.int64))

    def __len__(self) -> int:
        return len(self.opcode)
