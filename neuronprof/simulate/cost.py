"""What an instruction of a NeuronCore costs: one formula an opcode family, with the source of its cycles.

Names with a dot are numbers of the chip's file, lnc, ranks_on_chip and oversubscription of the job (Job.values), all others operands. The
work of a logical NeuronCore is spread evenly over its lnc physical cores (measured scaling over 4 cores: 1.00 to 1.03, xpu-perf on
Trainium2).
"""

from neuronprof.formula import Formula
from neuronprof.program import DMA_OPCODES, Opcode

# MATMUL on the PE arrays: batch, M stationary, K contracted, N moving. For each batch, each `rows` of K and each `columns` of M, N cycles,
# but at least interval_min for each moving_max of N, and not less than the weight_load that hides behind it; FP32 takes fp32_passes times
# as long, FP8 1 / fp8_speedup (NKI guide, Trainium architecture, tensor engine). Tiles of all three dimensions are spread over the arrays;
# what several arrays sum up of one result is added while it is copied out of PSUM. One tile is the shortest.
_MATMUL = Formula(
    """
    shortest = max(tensor.interval_min, tensor.weight_load)
    tiles = batch * ceil(K / tensor.rows) * ceil(M / tensor.columns)
    streamed = tiles * max(N, shortest * ceil(N / tensor.moving_max)) / (tensor.arrays * lnc)
    speed = 1 / tensor.fp32_passes if itemsize >= 4 else tensor.fp8_speedup if itemsize == 1 else 1
    seconds = max(streamed, shortest) / speed / tensor.clock
    """,
    {"compute": "tiles * N / (tensor.arrays * lnc)", "latency": "max(streamed, shortest)"},
    ("slow_chips", "throttled", "jitter"),
)

# One MATMUL of an operator in detail, on `arrays` PE arrays side by side: N cycles, at least interval_min; FP32 takes fp32_passes times as
# long, and FP8 contracts fp8_speedup times as many rows at once, which its K says.
_MATMUL_TILE = Formula(
    """
    passes = tensor.fp32_passes if itemsize >= 4 else 1
    seconds = max(N, tensor.interval_min) * passes / tensor.clock
    """,
    {"compute": "N", "latency": "tensor.interval_min"},
    ("slow_chips", "throttled", "jitter"),
)

# The same while the array is cold (dI/dt throttling): for the share `cold` of the instruction at cold_speed.
_MATMUL_COLD = Formula(
    """
    passes = tensor.fp32_passes if itemsize >= 4 else 1
    warm = max(N, tensor.interval_min) * passes / tensor.clock
    seconds = warm * (1 + cold * (1 / tensor.cold_speed - 1))
    """,
    {"dI/dt throttling": "seconds - warm", "compute": "warm"},
    ("slow_chips", "throttled", "jitter"),
)

# LDWEIGHTS: K x M weights into the array, behind the MATMUL before it (NKI performance guide: fast weight load).
_LDWEIGHTS = Formula(
    "seconds = tensor.weight_load / tensor.clock", {"latency": "seconds"}, ("slow_chips", "throttled", "jitter")
)

# Vector, scalar and gpsimd instructions: one element a lane and cycle, or as many as the engine's mode for 16-bit operands takes, which on
# the vector engine depends on the instruction and which reductions have not (NKI guide, Trainium2 architecture, performance mode); each
# instruction covers up to `tile` elements a lane and takes at least `minimum` cycles; the first of a row of them takes `overhead` more (NKI
# guide; NKI performance guide). Single instructions of an operator in detail that follow another of their row have formulas of their own,
# without it.
_LANES = """
    per_lane = elements * passes / ({0}.lanes * lnc)
    instructions = max(1, ceil(per_lane / {0}.tile))
    speed = {1}
    cycles = max(per_lane / speed, instructions * {0}.minimum){2}
    seconds = cycles / {0}.clock
    """

# DMA between HBM and SBUF: the interval in which HBM serves it. piece: contiguous bytes. Bytes over the slower of the core's DMA engines at
# this piece size and the rank's share of HBM (NKI DMA bandwidth guide), of which streaming reaches hbm_efficiency. reread, reload: what of
# the bytes moves only for want of room in SBUF, see Opcode.
_DMA = Formula(
    """
    efficiency = by_size(piece, 64, dma.efficiency_64, 256, dma.efficiency_256, 512, dma.efficiency_512, 2048, dma.efficiency_2048, 4096, dma.efficiency_4096)
    engines = dma.engines * dma.bandwidth * lnc * efficiency
    share = package.hbm_bandwidth / ranks_on_chip
    seconds = bytes / (min(engines, share) * package.hbm_efficiency)
    """,  # noqa: E501  (a formula's line is one line)
    {"bytes out of HBM": "1 / share", "bytes over the DMA engines": "1 / engines"},
    ("slow_chips", "jitter"),
)

HOST_COPY = Formula(
    "seconds = bytes / host.copy_bandwidth", {"bytes between host and HBM": "seconds"}, ("slow_chips", "jitter")
)


def _lanes(engine: str, speed: str, *, starts: bool = True) -> Formula:
    """The formula of one of the engines with lanes: vector, scalar or gpsimd. starts: the instruction is the first of its row."""
    bounds = {"compute": "per_lane / speed", "latency": f"instructions * {engine}.minimum"}
    bounds |= {"overhead": f"{engine}.overhead"} if starts else {}
    return Formula(
        _LANES.format(engine, speed, f" + {engine}.overhead" if starts else ""), bounds, ("slow_chips", "jitter")
    )


# Formulas of the engines with lanes: the engine, and how much faster it is for this instruction.
_LANE_ENGINES = {
    "vector": ("vector", "vector.speedup_16bit if itemsize <= 2 else 1"),
    "vector_one": ("vector", "max(vector.speedup_16bit, vector.speedup_16bit_one) if itemsize <= 2 else 1"),
    "vector_reduce": ("vector", "1"),
    "scalar": ("scalar", "scalar.speedup_16bit if itemsize <= 2 else 1"),
    "gpsimd": ("gpsimd", "gpsimd.speedup_16bit if itemsize <= 2 else 1"),
}

# Of each of them, the formula of single instructions that follow another of their row.
FOLLOWING = {name: f"{name}_next" for name in _LANE_ENGINES}

FORMULAS = {
    "matmul": _MATMUL,
    "matmul_tile": _MATMUL_TILE,
    "matmul_cold": _MATMUL_COLD,
    "ldweights": _LDWEIGHTS,
    **{name: _lanes(*engine) for name, engine in _LANE_ENGINES.items()},
    **{FOLLOWING[name]: _lanes(*engine, starts=False) for name, engine in _LANE_ENGINES.items()},
    "dma": _DMA,
    "host_copy": HOST_COPY,
    "launch": Formula("seconds = host.launch", {"overhead": "seconds"}),
}

# Each opcode's formula, and what its operands are called there; '' leaves one out.
_ELEMENTS = ("elements", "passes")
OPERANDS: dict[Opcode, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(DMA_OPCODES, ("dma", ("bytes", "piece", "reread", "reload"))),
    Opcode.MATMUL: ("matmul", ("batch", "M", "K", "N")),
    Opcode.MATMUL_TILE: ("matmul_tile", ("arrays", "M", "K", "N")),
    Opcode.LDWEIGHTS: ("ldweights", ("arrays", "M", "K")),
    Opcode.ACTIVATE: ("scalar", _ELEMENTS),
    Opcode.TENSOR_TENSOR: ("vector", _ELEMENTS),
    Opcode.TENSOR_SCALAR: ("vector_one", _ELEMENTS),
    Opcode.TENSOR_REDUCE: ("vector_reduce", _ELEMENTS),
    Opcode.CUSTOM_OP: ("gpsimd", _ELEMENTS),
    Opcode.COPY_TO_DEVICE: ("host_copy", ("bytes",)),
    Opcode.COPY_TO_HOST: ("host_copy", ("bytes",)),
    Opcode.LAUNCH: ("launch", ()),
}
