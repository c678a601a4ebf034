"""What an instruction of a GPU's kernel costs: one formula a kind of instruction, as in cost.py.

The instructions of a kernel run side by side, and each takes at least the gap that follows the kernel before.
"""

from neuronprof.formula import Formula
from neuronprof.program import DMA_OPCODES, Access, Opcode
from neuronprof.simulate.cost import HOST_COPY

# Sides of a tile of the result, as shares of the largest: what libraries choose from.
TILES = ((1.0, 0.5), (0.5, 1.0), (0.5, 0.5), (0.5, 0.25), (0.25, 0.5), (0.25, 0.25))
_PEAK = "peak.fp32 if itemsize >= 4 else peak.fp8 if itemsize == 1 else peak.bf16"
_COMPUTE = {"compute": "seconds - kernels.gap", "overhead": "kernels.gap"}
_PRODUCT = ("slow_chips", "throttled", "jitter")
_OTHER = ("slow_chips", "jitter")

# MATMUL in tiles of the result of a x b: each SM computes one at a time, so that the product takes as many waves as its tiles need on all
# SMs, and the last one may be nearly empty. A tile costs a * b * (K + prologue) multiply-adds, and more the smaller it is, because each of
# its a + b operands a step of K feeds fewer of them: over what that comes to for the largest tile. All at `gemm` (gemm_fp8) of the peak of
# an SM. The fastest of TILES is taken.
_GEMM = Formula(
    f"""
    top = {_PEAK}
    rate = top * (kernels.gemm_fp8 if itemsize == 1 else kernels.gemm) / memory.psum_banks
    waves = ceil(batch * ceil(M / a) * ceil(N / b) / memory.psum_banks)
    largest = 1 + kernels.operands * (1 / kernels.tile + 1 / (kernels.tile / 2))
    fed = 1 + kernels.operands * (1 / a + 1 / b)
    seconds = kernels.gap + waves * 2 * a * b * (K + kernels.prologue) / rate * fed / largest
    """,
    _COMPUTE,
    _PRODUCT,
)


# ATTENTION, ATTENTION_BACKWARD: multiply-adds of the products over all heads at the share of the peak that fused attention reaches; FP8
# attention runs in 16 bits.
def _attention(share: str) -> Formula:
    return Formula(
        f"""
        top = peak.fp32 if itemsize >= 4 else peak.bf16
        seconds = kernels.gap + 2 * batch * M * K * N / (top * kernels.{share})
        """,
        _COMPUTE,
        _PRODUCT,
    )


# CUDA cores and special-function units: elements times passes over the lanes.
def _lanes(engine: str) -> Formula:
    return Formula(
        f"""
        speed = {engine}.speedup_16bit if itemsize <= 2 else 1
        seconds = kernels.gap + elements * passes / ({engine}.lanes * {engine}.clock * speed)
        """,
        _COMPUTE,
        _OTHER,
    )


# Loads and stores of a kernel: bytes over what this access reaches of hbm_bandwidth.
_HBM = Formula(
    f"""
    reached = kernels.streaming if access == {Access.STREAMING:d} else kernels.rows if access == {Access.ROWS:d} else kernels.irregular
    seconds = bytes / (package.hbm_bandwidth * reached)
    """,
    {"bytes out of HBM": "seconds"},
    _OTHER,
)

FORMULAS = {
    "gemm": _GEMM,
    "attention": _attention("attention"),
    "attention_backward": _attention("attention_backward"),
    "vector": _lanes("vector"),
    "scalar": _lanes("scalar"),
    "gpsimd": _lanes("gpsimd"),
    "hbm": _HBM,
    "host_copy": HOST_COPY,
    "launch": Formula("seconds = kernels.issue if single > 0 else host.launch", {"overhead": "seconds"}),
}

_SHAPE = ("batch", "M", "K", "N")
_ELEMENTS = ("elements", "passes")
OPERANDS: dict[Opcode, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(DMA_OPCODES, ("hbm", ("bytes", "", "access"))),
    Opcode.MATMUL: ("gemm", _SHAPE),
    Opcode.ATTENTION: ("attention", _SHAPE),
    Opcode.ATTENTION_BACKWARD: ("attention_backward", _SHAPE),
    Opcode.ACTIVATE: ("scalar", _ELEMENTS),
    Opcode.TENSOR_TENSOR: ("vector", _ELEMENTS),
    Opcode.TENSOR_SCALAR: ("vector", _ELEMENTS),
    Opcode.TENSOR_REDUCE: ("vector", _ELEMENTS),
    Opcode.CUSTOM_OP: ("gpsimd", _ELEMENTS),
    Opcode.COPY_TO_DEVICE: ("host_copy", ("bytes",)),
    Opcode.COPY_TO_HOST: ("host_copy", ("bytes",)),
    Opcode.LAUNCH: ("launch", ("single",)),
}
