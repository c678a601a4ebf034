"""What an instruction costs: one function an opcode family, on whole columns at once.

Every function says, in this order: OPERANDS (columns of Program.operands), CYCLES (the formula and its source), TIME. Times are integer
picoseconds. The work of a logical NeuronCore is spread evenly over its lnc physical cores (measured scaling over 4 cores: 1.00 to 1.03,
xpu-perf on Trainium2).
"""

from math import log2

import numpy as np

from neuronprof.graph.ir import DTYPE_BYTES
from neuronprof.hardware.spec import Chip, Dma, LaneEngine, TensorEngine
from neuronprof.program import DMA_OPCODES, Opcode, Program
from neuronprof.simulate import kernelcost

PICOSECONDS = 1e12


def durations(program: Program, chip: Chip, lnc: int, active_ranks: int) -> np.ndarray:
    """Picoseconds that each instruction occupies its engine, int64[n]; collectives are left at 0, the network decides them.

    active_ranks: ranks of the job on one chip; they share its HBM bandwidth evenly.
    """
    if chip.kernels:
        return kernelcost.durations(program, chip, chip.kernels)
    result = np.zeros(len(program), np.int64)
    itemsize = np.array([DTYPE_BYTES.get(d, 4) for d in program.dtypes] or [4])[program.dtype]
    for opcode in np.unique(program.opcode):
        rows = program.opcode == opcode
        operands, size = program.operands[rows], itemsize[rows]
        if opcode == Opcode.MATMUL:
            result[rows] = matmul(operands, size, chip.tensor, lnc)
        elif opcode in _LANES:
            result[rows] = lanes(operands, size, getattr(chip, _LANES[Opcode(opcode)]), lnc)
        elif opcode in (Opcode.COPY_TO_DEVICE, Opcode.COPY_TO_HOST):
            result[rows] = host_copy(operands, chip)
        elif opcode in DMA_OPCODES:
            result[rows] = dma(operands, chip, lnc, active_ranks)
        elif opcode == Opcode.LAUNCH:
            result[rows] = int(chip.host.launch * PICOSECONDS)
    return result


_LANES = {
    Opcode.ACTIVATE: "scalar",
    Opcode.TENSOR_TENSOR: "vector",
    Opcode.TENSOR_SCALAR: "vector",
    Opcode.TENSOR_REDUCE: "vector",
    Opcode.CUSTOM_OP: "gpsimd",
}


def matmul(operands: np.ndarray, itemsize: np.ndarray, engine: TensorEngine, lnc: int) -> np.ndarray:
    """MATMUL on the PE arrays.

    OPERANDS: batch, M (stationary), K (contraction), N (moving).
    CYCLES: for each batch, each `rows` of K and each `columns` of M, max(N, interval_min) cycles for up to moving_max of N, but not less
    than the weight_load that hides behind it; FP32 takes fp32_passes times as long, FP8 1 / fp8_speedup (NKI guide, Trainium
    architecture, tensor engine). Tiles of all three dimensions are spread over the arrays; what several arrays sum up of one result is
    added while it is copied out of PSUM. One tile is the shortest.
    """
    batch, m, k, n = operands.T.astype(np.float64)
    moves = np.ceil(n / engine.moving_max)
    shortest = max(engine.interval_min, engine.weight_load)
    deep, wide = np.ceil(k / engine.rows), np.ceil(m / engine.columns)
    total = batch * deep * wide * np.maximum(n, shortest * moves)
    cycles = np.maximum(total / (engine.arrays * lnc), shortest)
    speed = np.where(itemsize >= 4, 1 / engine.fp32_passes, np.where(itemsize == 1, engine.fp8_speedup, 1.0))
    return _picoseconds(cycles / speed, engine.clock)


def lanes(operands: np.ndarray, itemsize: np.ndarray, engine: LaneEngine, lnc: int) -> np.ndarray:
    """Vector, Scalar and GpSimd instructions.

    OPERANDS: elements, passes.
    CYCLES: one element a lane and cycle, speedup_16bit times that for 16-bit operands; each instruction covers up to `tile` elements a
    lane, takes at least `minimum` cycles, and the first of a row of them `overhead` more (NKI guide; NKI performance guide).
    """
    elements, passes = operands[:, 0].astype(np.float64), operands[:, 1]
    per_lane = elements * passes / (engine.lanes * lnc)
    instructions = np.maximum(1, np.ceil(per_lane / engine.tile))
    speed = np.where(itemsize <= 2, engine.speedup_16bit, 1.0)
    cycles = np.maximum(per_lane / speed, instructions * engine.minimum) + engine.overhead
    return _picoseconds(cycles, engine.clock)


def dma(operands: np.ndarray, chip: Chip, lnc: int, active_ranks: int) -> np.ndarray:
    """DMA between HBM and SBUF: the interval in which HBM serves it.

    OPERANDS: bytes, contiguous bytes of one piece.
    TIME: bytes over the slower of the core's DMA engines at this piece size and the rank's share of HBM (NKI DMA bandwidth guide), of
    which streaming reaches hbm_efficiency.
    """
    nbytes, piece = operands[:, 0].astype(np.float64), operands[:, 1]
    engines = chip.dma.engines * chip.dma.bandwidth * lnc * dma_efficiency(piece, chip.dma)
    share = chip.package.hbm_bandwidth / active_ranks
    return np.rint(nbytes / (np.minimum(engines, share) * chip.package.hbm_efficiency) * PICOSECONDS).astype(np.int64)


def dma_efficiency(piece: np.ndarray, dma_engines: Dma) -> np.ndarray:
    """Share of the DMA engines' bandwidth that pieces of this many contiguous bytes reach, interpolated over log2 of the size."""
    sizes = (64, 256, 512, 2048, 4096)
    known = [getattr(dma_engines, f"efficiency_{s}") for s in sizes]
    reached = np.interp(np.log2(np.maximum(piece, 1)), [log2(s) for s in sizes], known)
    # Below the smallest size every piece costs the same, so the bandwidth falls with the size.
    return reached * np.minimum(1.0, np.maximum(piece, 1) / sizes[0])


def host_copy(operands: np.ndarray, chip: Chip) -> np.ndarray:
    """Copies between the host and HBM. OPERANDS: bytes. TIME: bytes over the rank's copy bandwidth."""
    return np.rint(operands[:, 0] / chip.host.copy_bandwidth * PICOSECONDS).astype(np.int64)


def _picoseconds(cycles: np.ndarray, clock: float) -> np.ndarray:
    return np.rint(cycles / clock * PICOSECONDS).astype(np.int64)
