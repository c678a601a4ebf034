"""What a kernel of a GPU costs: one function a kind of instruction, on whole columns at once, as in cost.py.

The instructions of a kernel run side by side, and each takes at least the gap that follows the kernel before.
"""

import numpy as np

from neuronprof.graph.ir import DTYPE_BYTES
from neuronprof.hardware.spec import Chip, Kernels, LaneEngine
from neuronprof.program import DMA_OPCODES, PRODUCTS, Opcode, Program

PICOSECONDS = 1e12
# Sides of a tile of the result, as shares of the largest: what libraries choose from.
_TILES = ((1.0, 0.5), (0.5, 1.0), (0.5, 0.5), (0.5, 0.25), (0.25, 0.5), (0.25, 0.25))
_LANES = {
    Opcode.ACTIVATE: "scalar",
    Opcode.TENSOR_TENSOR: "vector",
    Opcode.TENSOR_SCALAR: "vector",
    Opcode.TENSOR_REDUCE: "vector",
    Opcode.CUSTOM_OP: "gpsimd",
}


def durations(program: Program, chip: Chip, kernels: Kernels) -> np.ndarray:
    """Picoseconds that each instruction occupies its engine, int64[n]; collectives are left at 0, the network decides them."""
    seconds = np.zeros(len(program))
    itemsize = np.array([DTYPE_BYTES.get(d, 4) for d in program.dtypes] or [4])[program.dtype]
    for opcode in np.unique(program.opcode):
        rows = program.opcode == opcode
        operands, size = program.operands[rows].astype(np.float64), itemsize[rows]
        if opcode == Opcode.MATMUL:
            seconds[rows] = kernels.gap + gemm(operands, size, chip, kernels)
        elif opcode in PRODUCTS:
            seconds[rows] = kernels.gap + attention(operands, size, opcode, chip, kernels)
        elif opcode in _LANES:
            seconds[rows] = kernels.gap + lanes(operands, size, getattr(chip, _LANES[Opcode(opcode)]))
        elif opcode in (Opcode.COPY_TO_DEVICE, Opcode.COPY_TO_HOST):
            seconds[rows] = operands[:, 0] / chip.host.copy_bandwidth
        elif opcode in DMA_OPCODES:
            seconds[rows] = hbm(operands, chip, kernels)
        elif opcode == Opcode.LAUNCH:
            seconds[rows] = np.where(operands[:, 0] > 0, kernels.issue, chip.host.launch)
    return np.rint(seconds * PICOSECONDS).astype(np.int64)


def _peak(itemsize: np.ndarray, chip: Chip) -> np.ndarray:
    return np.select([itemsize >= 4, itemsize == 1], [chip.peak.fp32, chip.peak.fp8], chip.peak.bf16)


def gemm(operands: np.ndarray, itemsize: np.ndarray, chip: Chip, kernels: Kernels) -> np.ndarray:
    """MATMUL.

    OPERANDS: batch, M, K, N.
    TIME: each SM computes one tile of the result at a time, so that the product takes as many waves as its tiles need on all SMs, and the
    last one may be nearly empty. A tile of a x b costs a * b * (K + prologue) multiply-adds, and more the smaller it is, because each of
    its a + b operands a step of K feeds fewer of them: times 1 + operands * (1/a + 1/b), over that of the largest tile. The fastest of the
    tiles in _TILES is taken. All at `gemm` (gemm_fp8) of the peak of an SM.
    """
    batch, m, k, n = operands.T
    reached = np.where(itemsize == 1, kernels.gemm_fp8, kernels.gemm)
    rate = _peak(itemsize, chip) * reached / chip.memory.psum_banks

    def fed(a: float, b: float) -> float:
        return 1 + kernels.operands * (1 / a + 1 / b)

    largest = fed(kernels.tile, kernels.tile / 2)
    best = np.full(len(operands), np.inf)
    for a, b in ((kernels.tile * x, kernels.tile * y) for x, y in _TILES):
        waves = np.ceil(batch * np.ceil(m / a) * np.ceil(n / b) / chip.memory.psum_banks)
        best = np.minimum(best, waves * 2 * a * b * (k + kernels.prologue) / rate * fed(a, b) / largest)
    return best


def attention(operands: np.ndarray, itemsize: np.ndarray, opcode: int, chip: Chip, kernels: Kernels) -> np.ndarray:
    """ATTENTION, ATTENTION_BACKWARD.

    OPERANDS: products over all heads, M, K, N.
    TIME: multiply-adds at `attention` (attention_backward) of the peak; FP8 attention runs in 16 bits.
    """
    reached = kernels.attention if opcode == Opcode.ATTENTION else kernels.attention_backward
    return 2 * operands.prod(axis=1) / (_peak(np.maximum(itemsize, 2), chip) * reached)


def lanes(operands: np.ndarray, itemsize: np.ndarray, engine: LaneEngine) -> np.ndarray:
    """CUDA cores and special-function units. OPERANDS: elements, passes. TIME: elements times passes over the lanes."""
    speed = np.where(itemsize <= 2, engine.speedup_16bit, 1.0)
    return operands[:, 0] * operands[:, 1] / (engine.lanes * engine.clock * speed)


def hbm(operands: np.ndarray, chip: Chip, kernels: Kernels) -> np.ndarray:
    """Loads and stores of a kernel. OPERANDS: bytes, _, Access. TIME: bytes over what this access reaches of hbm_bandwidth."""
    reached = np.array([kernels.streaming, kernels.rows, kernels.irregular])[operands[:, 2].astype(int)]
    return operands[:, 0] / (chip.package.hbm_bandwidth * reached)
