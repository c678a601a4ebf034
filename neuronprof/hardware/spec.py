"""The frozen description of a chip, loaded from TOML: every number carries a unit, a provenance and a source."""

from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property

from neuronprof.terms import Provenance


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number of the machine and where it comes from."""

    value: float
    unit: str
    provenance: Provenance
    source: str


def unit(name: str) -> float:
    """Declares a dataclass field that holds a number in this unit."""
    return field(metadata={"unit": name})


def optional(name: str) -> float:
    """Declares a field that a file may leave out, which makes it 0: the machine or its software has no such thing."""
    return field(default=0.0, metadata={"unit": name})


@dataclass(frozen=True, slots=True)
class Package:
    """The chip as a whole. cores: physical NeuronCores; lnc: physical cores in a logical one, by default."""

    cores: float = unit("cores")
    lnc: float = unit("cores")
    hbm_capacity: float = unit("B")
    hbm_bandwidth: float = unit("B/s")
    hbm_efficiency: float = unit("fraction")  # what large streaming transfers reach of hbm_bandwidth


@dataclass(frozen=True, slots=True)
class Peak:
    """Dense matmul peak of the chip, the denominator of MFU and HFU."""

    bf16: float = unit("FLOP/s")
    fp8: float = unit("FLOP/s")
    fp32: float = unit("FLOP/s")


@dataclass(frozen=True, slots=True)
class TensorEngine:
    """The PE array of one physical core. A MATMUL holds rows x columns stationary weights and streams up to moving_max columns past them.

    arrays: PE arrays a core that work side by side; interval_min: fewest cycles between two MATMULs; weight_load: cycles to swap the
    stationary tile (hidden behind the MATMUL before it); fp32_passes: times a FP32 MATMUL is slower than BF16; fp8_speedup: times a FP8 one
    is faster. cold_time, cold_speed: how long the array works at what share of its speed after it was busy for less than half of such a
    time (dI/dt throttling).
    """

    rows: float = unit("PE")
    columns: float = unit("PE")
    arrays: float = unit("arrays")
    clock: float = unit("Hz")
    moving_max: float = unit("elements")
    interval_min: float = unit("cycles")
    weight_load: float = unit("cycles")
    fp32_passes: float = unit("passes")
    fp8_speedup: float = unit("ratio")
    cold_time: float = optional("s")
    cold_speed: float = optional("fraction")


@dataclass(frozen=True, slots=True)
class LaneEngine:
    """Vector, Scalar or GpSimd engine of one physical core.

    lanes: elements a cycle; minimum: cycles of an instruction at least; overhead: cycles to start; speedup_16bit: times faster on 16-bit
    operands; speedup_16bit_one: of the vector engine, where one of them is a tensor; tile: elements a lane that one instruction covers
    at most.
    """

    clock: float = unit("Hz")
    lanes: float = unit("elements/cycle")
    minimum: float = unit("cycles")
    overhead: float = unit("cycles")
    speedup_16bit: float = unit("ratio")
    tile: float = unit("elements")
    speedup_16bit_one: float = optional("ratio")


@dataclass(frozen=True, slots=True)
class OnChipMemory:
    """SBUF and PSUM of one physical core."""

    sbuf: float = unit("B")
    psum: float = unit("B")
    psum_banks: float = unit("banks")
    partitions: float = unit("partitions")


@dataclass(frozen=True, slots=True)
class Dma:
    """DMA of one physical core.

    start: from trigger to first byte. efficiency_*: share of the bandwidth reached with contiguous pieces of 64 B, 256 B, 512 B, 2 KiB,
    4 KiB and more; between them it is interpolated over the logarithm of the size. efficient: smallest piece that is recommended.
    """

    engines: float = unit("engines")
    bandwidth: float = unit("B/s")  # of one engine
    start: float = unit("s")
    efficiency_64: float = unit("fraction")
    efficiency_256: float = unit("fraction")
    efficiency_512: float = unit("fraction")
    efficiency_2048: float = unit("fraction")
    efficiency_4096: float = unit("fraction")
    efficient: float = optional("B")


@dataclass(frozen=True, slots=True)
class Link:
    """NeuronLink or EFA of one chip, and how its collectives library uses it.

    bandwidth: out of the chip, each direction; efficiency: what collectives reach of it; latency: of one hop; start: of a collective,
    whatever its algorithm; domain: chips that it joins (an UltraServer for NeuronLink, an UltraCluster for EFA).

    What a library may lack: mesh_limit, rdh_limit: largest message for the mesh and for recursive halving-doubling; kangaring_steps:
    KangaRing, with its steps as a share of the ring's; in_switch_efficiency: all-reduce in the switch; quick_start, quick_efficiency: a
    protocol for short messages; local_bandwidth: of a rank, to another one on its chip or to its own result; pieces: into which a message
    is cut, so that the phases of a hierarchical collective overlap.
    """

    bandwidth: float = unit("B/s")
    efficiency: float = unit("fraction")
    latency: float = unit("s")
    start: float = unit("s")
    domain: float = unit("chips")
    mesh_limit: float = optional("B")
    rdh_limit: float = optional("B")
    kangaring_steps: float = optional("fraction")
    in_switch_efficiency: float = optional("fraction")
    quick_start: float = optional("s")
    quick_efficiency: float = optional("fraction")
    local_bandwidth: float = optional("B/s")
    pieces: float = optional("pieces")


@dataclass(frozen=True, slots=True)
class Host:
    """The CPU side. launch: from host call to first instruction of a compiled graph; copy_bandwidth: host to HBM and back, one rank."""

    launch: float = unit("s")
    copy_bandwidth: float = unit("B/s")


@dataclass(frozen=True, slots=True)
class Kernels:
    """How a GPU runs operators: one kernel after another on a stream, each spread over all SMs. Chips without this section are compiled.

    gap: from the end of a kernel to the first instruction of the next; issue: host time to launch one, where no graph does. tile: a GEMM is
    computed in tiles of the result, the largest tile x tile / 2, one a SM at a time; prologue: K that a tile costs besides its own, to fill
    and drain its pipeline; operands: result elements that cost as much as one row or column of operands of a tile. gemm, gemm_fp8: share
    of the peak that large products reach; attention, attention_backward: that fused attention reaches. streaming, rows, irregular: share
    of hbm_bandwidth that element-wise kernels, kernels along rows (norms, softmax, sums), and gathers, scatters and sorts reach. exposed:
    share of a collective between products that is not hidden behind them.
    """

    gap: float = unit("s")
    issue: float = unit("s")
    tile: float = unit("elements")
    prologue: float = unit("elements")
    operands: float = unit("elements")
    gemm: float = unit("fraction")
    gemm_fp8: float = unit("fraction")
    attention: float = unit("fraction")
    attention_backward: float = unit("fraction")
    streaming: float = unit("fraction")
    rows: float = unit("fraction")
    irregular: float = unit("fraction")
    exposed: float = unit("fraction")


@dataclass(frozen=True, slots=True)
class Price:
    """On-demand or comparable price of one chip for an hour."""

    hour: float = unit("USD/h")


@dataclass(frozen=True)
class Chip:
    """One chip. eager: where there are kernels, each operator is one of its own that the host launches; a user's choice.

    quantities: 'section.field' to Quantity, for whoever asks where a number comes from.
    """

    name: str
    title: str
    topology: str  # of NeuronLink: 'switch', or 'torus': 4 x 4 chips, and rings of the fourth, eighth, ... between such squares
    package: Package
    peak: Peak
    tensor: TensorEngine
    vector: LaneEngine
    scalar: LaneEngine
    gpsimd: LaneEngine
    memory: OnChipMemory
    dma: Dma
    neuronlink: Link
    efa: Link
    host: Host
    price: Price
    kernels: Kernels | None = None
    eager: bool = False
    instance: str = ""  # the EC2 instance type that has it, 'p5'; '' for none
    quantities: dict[str, Quantity] = field(default_factory=dict, repr=False)

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Every number by 'section.field'; what the file leaves out is 0."""
        sections = {f.name: getattr(self, f.name) for f in fields(self) if is_dataclass(getattr(self, f.name))}
        return {
            f"{name}.{f.name}": getattr(section, f.name) for name, section in sections.items() for f in fields(section)
        }

    def ranks(self, lnc: int) -> int:
        """Logical NeuronCores of the chip, each of which is one rank."""
        return int(self.package.cores) // lnc
