"""A chip and graphs small enough to compute with by hand."""

from dataclasses import replace

import numpy as np

from neuronprof.graph.ir import Buffer, Graph, Signature, Tensor
from neuronprof.hardware import spec
from neuronprof.terms import PHASES, Phase, Role

# One cycle is 1 ns everywhere; HBM moves 1 byte a nanosecond... times 1000: 1 TB/s is 1000 bytes a nanosecond.
GHZ = 1e9


def chip(**sections) -> spec.Chip:
    """One core, 128 x 128 PE array and 128 lanes at 1 GHz, 1 TB/s of HBM, 24 MiB of SBUF, no start-up costs."""
    lanes = spec.LaneEngine(clock=GHZ, lanes=128, minimum=1, overhead=0, speedup_16bit=1, tile=512)
    whole = spec.Chip(
        name="toy",
        title="Toy",
        topology="switch",
        package=spec.Package(cores=1, lnc=1, hbm_capacity=2**34, hbm_bandwidth=1e12, hbm_efficiency=1),
        peak=spec.Peak(bf16=2 * 128 * 128 * GHZ, fp8=4 * 128 * 128 * GHZ, fp32=128 * 128 * GHZ / 2),
        tensor=spec.TensorEngine(
            128, 128, 1, GHZ, moving_max=512, interval_min=64, weight_load=32, fp32_passes=4, fp8_speedup=2
        ),
        vector=lanes,
        scalar=lanes,
        gpsimd=lanes,
        memory=spec.OnChipMemory(sbuf=24 * 2**20, psum=2 * 2**20, psum_banks=8, partitions=128),
        dma=spec.Dma(16, 1e12, 1e-12, 1, 1, 1, 1, 1),
        neuronlink=spec.Link(1e11, 1, 1e-6, 0, 128, mesh_limit=2**20, rdh_limit=2**26, kangaring_steps=0.5),
        efa=spec.Link(1e10, 1, 1e-5, 0, 1024, mesh_limit=2**20, rdh_limit=2**26),
        host=spec.Host(launch=1e-4, copy_bandwidth=1e10),
        price=spec.Price(hour=1.0),
    )
    return replace(whole, **sections)


def gpu(**fields) -> spec.Chip:
    """The same chip as one that runs kernels: 8 SMs, tiles of 128 x 64, nothing lost but 1 us between kernels."""
    kernels = spec.Kernels(
        gap=1e-6, issue=5e-6, tile=128, prologue=0, operands=0, gemm=1, gemm_fp8=1, attention=0.5, attention_backward=0.25,
        streaming=1, rows=0.5, irregular=0.25, exposed=1,
    )  # fmt: skip
    return chip(kernels=replace(kernels, **fields))


class GraphBuilder:
    """Writes a graph operator by operator: g.op('aten.mm.default', [x, w], [y])."""

    def __init__(self) -> None:
        self._ops, self._buffers, self._tensors = [], [], []

    def tensor(self, *shape, dtype="float32", role=Role.ACTIVATIONS, birth=-1, death=-1, name="") -> int:
        stride = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        tensor = Tensor(dtype, tuple(shape), stride)
        self._tensors.append(tensor)
        self._buffers.append(Buffer(tensor.nbytes, birth, death, role, name))
        return len(self._tensors) - 1

    def op(self, name, inputs, outputs, phase=Phase.FORWARD, mutates=(), attributes=()) -> int:
        signature = Signature(
            name,
            tuple(self._tensors[i] for i in inputs),
            tuple(self._tensors[o] for o in outputs),
            tuple(attributes),
            tuple(mutates),
        )
        self._ops.append((signature, [*inputs, *outputs], PHASES.index(phase)))
        return len(self._ops) - 1

    def graph(self) -> Graph:
        n = len(self._ops)
        zeros = np.zeros(n, np.int32)
        return Graph(
            signatures=tuple(s for s, _, _ in self._ops),
            signature=np.arange(n, dtype=np.int32),
            phase=np.array([p for _, _, p in self._ops], np.int8),
            module=zeros,
            source=zeros,
            region=zeros,
            forward=zeros - 1,
            operand_ptr=np.cumsum([0, *(len(o) for _, o, _ in self._ops)]),
            operands=np.array([b for _, o, _ in self._ops for b in o], np.int32),
            buffers=tuple(self._buffers),
        )


def mlp(batch=256, width=512, dtype="bfloat16") -> Graph:
    """y = relu(x w): a matmul whose epilogue fuses, from HBM and back."""
    g = GraphBuilder()
    x = g.tensor(batch, width, dtype=dtype, role=Role.INPUTS)
    w = g.tensor(width, width, dtype=dtype, role=Role.WEIGHTS)
    h = g.tensor(batch, width, dtype=dtype, birth=0, death=1)
    y = g.tensor(batch, width, dtype=dtype, birth=1)
    g.op("aten.mm.default", [x, w], [h])
    g.op("aten.relu.default", [h], [y])
    return g.graph()
