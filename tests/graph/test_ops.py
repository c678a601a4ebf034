"""Costs of operators: a table computed by hand."""

from typing import Any

import pytest

from neuronprof.graph.cost import Gemm, Work
from neuronprof.graph.ir import Signature, Tensor
from neuronprof.graph.ops import OpKind, work
from neuronprof.graph.rules import ROWS, RULES


def f32(*shape: int, dtype: str = "float32", stride: tuple[int, ...] | None = None) -> Tensor:
    steps = [1]
    for size in reversed(shape[1:]):
        steps.insert(0, steps[0] * size)
    return Tensor(dtype, shape, stride if stride is not None else tuple(steps[: len(shape)]))


def bf16(*shape: int) -> Tensor:
    return f32(*shape, dtype="bfloat16")


def i64(*shape: int) -> Tensor:
    return f32(*shape, dtype="int64")


def op(
    name: str,
    inputs: list[Tensor],
    outputs: list[Tensor],
    *attributes: Any,
    mutates: tuple[int, ...] = (),
    view: bool = False,
) -> Signature:
    return Signature(f"aten.{name}", tuple(inputs), tuple(outputs), attributes, mutates, view)


K = OpKind
TABLE: list[tuple[Signature, Work]] = [
    # (4, 16) x (16, 8): 2 * 4 * 16 * 8 = 1024 FLOPs
    (
        op("mm.default", [f32(4, 16), f32(16, 8)], [f32(4, 8)]),
        Work(K.GEMM, gemms=(Gemm(1, 4, 16, 8),), elements=32, reads=(256, 512), writes=(128,)),
    ),
    # the bias is one vector pass over the 32 elements
    (
        op("addmm.default", [f32(8), f32(4, 16), f32(16, 8)], [f32(4, 8)]),
        Work(K.GEMM, gemms=(Gemm(1, 4, 16, 8),), vector=32, elements=32, reads=(32, 256, 512), writes=(128,)),
    ),
    # batch 3; the addend is as large as the result: two passes over 96 elements; bfloat16 has 2 bytes
    (
        op("baddbmm.default", [bf16(3, 4, 8), bf16(3, 4, 2), bf16(3, 2, 8)], [bf16(3, 4, 8)]),
        Work(K.GEMM, gemms=(Gemm(3, 4, 2, 8),), vector=192, elements=96, reads=(192, 48, 96), writes=(192,)),
    ),
    # image (2, 4, 6, 6), 8 filters 3x3 in 2 groups of 2 channels, output 4x4: m = 2 * 16, k = 2 * 9, n = 4; bias over 256
    (
        op("convolution.default", [f32(2, 4, 6, 6), f32(8, 2, 3, 3), f32(8)], [f32(2, 8, 4, 4)], 1, 1, 0, 0, 1, 1, False, 0, 0, 2),
        Work(K.GEMM, gemms=(Gemm(2, 32, 18, 4),), vector=256, elements=256, reads=(1152, 576, 32), writes=(1024,)),
    ),
    # only weight and bias gradients are wanted: m = 4 filters, k = 2 * 16 positions, n = 18 taps; bias: sum over 256
    (
        op(
            "convolution_backward.default",
            [f32(2, 8, 4, 4), f32(2, 4, 6, 6), f32(8, 2, 3, 3)],
            [f32(8, 2, 3, 3), f32(8)],
            *(8, 1, 1, 0, 0, 1, 1, False, 0, 0, 2, False, True, True),
        ),
        Work(K.GEMM, gemms=(Gemm(2, 4, 32, 18),), vector=256, elements=144, reads=(1024, 1152, 576), writes=(576, 32)),
    ),
    # 2 x 4 heads, 16 queries, 8 keys: 1024 scores: two vector passes, one exponential, dropout: two more and random numbers
    (
        op("_scaled_dot_product_flash_attention_for_cpu.default", [f32(2, 4, 16, 32), *[f32(2, 4, 8, 32)] * 2],
           [f32(2, 4, 16, 32), f32(2, 4, 16)], 0.1, True),
        Work(
            K.ATTENTION, gemms=(Gemm(8, 16, 32, 8), Gemm(8, 16, 8, 32)), vector=4096, scalar=1024, gpsimd=1024, elements=4096,
            reads=(16384, 8192, 8192), writes=(16384, 512),
        ),
    ),
    # 5 steps, batch 2, width 3, hidden 4: gates 16; 5 * 2 * 16 = 160 gate elements; cells are a quarter of them
    (
        op("mkldnn_rnn_layer.default", [f32(5, 2, 3), f32(16, 3), f32(16, 4), f32(16), f32(16), f32(2, 4), f32(2, 4)],
           [f32(5, 2, 4), f32(2, 4), f32(2, 4)], False),
        Work(
            K.GEMM, gemms=(Gemm(1, 10, 3, 16), Gemm(5, 2, 4, 16)), vector=640, scalar=200, elements=40,
            reads=(120, 192, 256, 64, 64, 32, 32), writes=(160, 32, 32),
        ),
    ),
    # two tensors: two passes; a number or a tensor of one element: one
    (
        op("add.Tensor", [f32(4, 8), f32(4, 8)], [f32(4, 8)]),
        Work(K.ELEMENTWISE, vector=64, two_inputs=True, elements=32, reads=(128, 128), writes=(128,)),
    ),
    (op("mul.Tensor", [f32(4, 8), f32()], [f32(4, 8)]), Work(K.ELEMENTWISE, vector=32, elements=32, reads=(128, 4), writes=(128,))),
    # broadcast by stride 0: 8 elements stand in memory
    (
        op("mul.Tensor", [f32(4, 8), f32(4, 8, stride=(0, 1))], [f32(4, 8)]),
        Work(K.ELEMENTWISE, vector=64, two_inputs=True, elements=32, reads=(128, 32), writes=(128,)),
    ),
    # in place: the result is the first input, its bytes stand at the output
    (
        op("add_.Tensor", [f32(4, 8), f32(4, 8)], [f32(4, 8)], mutates=(0,)),
        Work(K.ELEMENTWISE, vector=64, two_inputs=True, elements=32, reads=(128, 128), writes=(128, 0)),
    ),
    # lists that return nothing may name what they wrote as their outputs: it is written once
    (
        op("_foreach_neg_.default", [f32(4), f32(2, 3)], [f32(4), f32(2, 3)], mutates=(0, 1)),
        Work(K.ELEMENTWISE, vector=10, elements=10, reads=(16, 24), writes=(16, 24, 0, 0)),
    ),
    # lists: (4) and (2, 3) with (4) and (2, 3): 10 elements; no output
    (
        op("_foreach_add_.List", [f32(4), f32(2, 3), f32(4), f32(2, 3)], [], mutates=(0, 1)),
        Work(K.ELEMENTWISE, vector=20, two_inputs=True, elements=10, reads=(16, 24, 16, 24), writes=(16, 24)),
    ),
    (
        op("_foreach_mul_.Scalar", [f32(4), f32(2, 3)], [], 0.9, mutates=(0, 1)),
        Work(K.ELEMENTWISE, vector=10, elements=10, reads=(16, 24), writes=(16, 24)),
    ),
    (
        op("_foreach_sqrt.default", [f32(4), f32(2, 3)], [f32(4), f32(2, 3)]),
        Work(K.ELEMENTWISE, scalar=10, elements=10, reads=(16, 24), writes=(16, 24)),
    ),
    # two parameters (4) and (6) with gradient, two moments and a step each; gradients are declared mutated, not written
    (
        op("_fused_adamw_.default", [*[f32(4), f32(6)] * 4, f32(), f32()],
           [], 1e-3, 0.9, 0.999, 0.01, 1e-8, False, False, mutates=tuple(range(8))),
        Work(
            K.ELEMENTWISE, vector=100, scalar=20, elements=10, reads=(16, 24) * 4 + (4, 4), writes=(16, 24, 0, 0, 16, 24, 16, 24),
        ),
    ),
    (op("gelu.default", [f32(4, 8)], [f32(4, 8)]), Work(K.ELEMENTWISE, scalar=32, elements=32, reads=(128,), writes=(128,))),
    (
        op("where.self", [f32(4, 8, dtype="bool"), f32(4, 8), f32()], [f32(4, 8)]),
        Work(K.ELEMENTWISE, vector=64, two_inputs=True, elements=32, reads=(32, 128, 4), writes=(128,)),
    ),
    # maximum and scaling on the vector engine, exponential on the scalar engine
    (
        op("_softmax.default", [f32(4, 8)], [f32(4, 8)], -1, False),
        Work(K.REDUCTION, vector=64, scalar=32, elements=32, reads=(128,), writes=(128,)),
    ),
    (
        op("native_layer_norm.default", [f32(4, 8), f32(8), f32(8)], [f32(4, 8), f32(4, 1), f32(4, 1)], 8, 1e-5),
        Work(K.REDUCTION, vector=160, elements=32, reads=(128, 32, 32), writes=(128, 16, 16)),
    ),
    # running statistics are mutated beside three fresh outputs
    (
        op("native_batch_norm.default", [f32(2, 3, 4, 4), *[f32(3)] * 4],
           [f32(2, 3, 4, 4), f32(3), f32(3)], True, 0.1, 1e-5, mutates=(3, 4)),
        Work(K.REDUCTION, vector=192, elements=96, reads=(384, 12, 12, 12, 12), writes=(384, 12, 12, 12, 12)),
    ),
    (  # one number a row is no second stream, a row for all rows is
        op("mul.Tensor", [f32(4, 8), f32(4, 1)], [f32(4, 8)]),
        Work(K.ELEMENTWISE, vector=32, elements=32, reads=(128, 16), writes=(128,)),
    ),
    (
        op("mul.Tensor", [f32(4, 8), f32(8)], [f32(4, 8)]),
        Work(K.ELEMENTWISE, vector=64, two_inputs=True, elements=32, reads=(128, 32), writes=(128,)),
    ),
    # along rows on the scalar engine, over rows on the vector engine
    (op("sum.dim_IntList", [f32(4, 8)], [f32(4)], 1), Work(K.REDUCTION, scalar=32, elements=32, reads=(128,), writes=(16,))),
    (op("sum.dim_IntList", [f32(4, 8)], [f32(8)], 0), Work(K.REDUCTION, vector=32, elements=32, reads=(128,), writes=(32,))),
    (
        op("max.other", [f32(4), f32(4)], [f32(4)]),
        Work(K.ELEMENTWISE, vector=8, two_inputs=True, elements=4, reads=(16, 16), writes=(16,)),
    ),
    # windows 3x3 over 2 x 4 x 4 outputs
    (
        op("max_pool2d_with_indices.default", [f32(1, 2, 8, 8)], [f32(1, 2, 4, 4), i64(1, 2, 4, 4)], 3, 3, 2, 2, 1, 1),
        Work(K.REDUCTION, vector=288, elements=128, reads=(512,), writes=(128, 256)),
    ),
    # 6 of 1000 rows of 8: 6 indices, 192 bytes
    (
        op("embedding.default", [f32(1000, 8), i64(2, 3)], [f32(2, 3, 8)]),
        Work(K.GATHER, gpsimd=6, elements=48, reads=(192, 48), writes=(192,)),
    ),
    (
        op("embedding_dense_backward.default", [f32(2, 3, 8), i64(2, 3)], [f32(10, 8)], 10, -1, False),
        Work(K.SCATTER, vector=128, gpsimd=6, elements=80, reads=(192, 48), writes=(320,)),
    ),
    # adds to 3 of 10 rows: reads and writes these rows only
    (
        op("index_add_.default", [f32(10, 8), i64(3), f32(3, 8)], [f32(10, 8)], 0, mutates=(0,)),
        Work(K.SCATTER, vector=24, gpsimd=3, elements=80, reads=(96, 24, 96), writes=(96, 0)),
    ),
    # the target is overwritten, not read
    (
        op("copy_.default", [f32(4), f32(4, dtype="float16")], [f32(4)], mutates=(0,)),
        Work(K.COPY, vector=4, elements=4, reads=(0, 8), writes=(16, 0)),
    ),
    (op("cat.default", [f32(2, 4), f32(3, 4)], [f32(5, 4)], 0), Work(K.COPY, vector=20, elements=20, reads=(32, 48), writes=(80,))),
    (op("zeros_like.default", [f32(4)], [f32(4)]), Work(K.FILL, vector=4, elements=4, reads=(0,), writes=(16,))),
    (op("empty.memory_format", [], [f32(4)], 4), Work(K.FILL, elements=4, writes=(0,))),
    (
        op("native_dropout.default", [f32(8)], [f32(8), f32(8, dtype="bool")], 0.1, True),
        Work(K.RANDOM, vector=48, gpsimd=16, elements=16, reads=(32,), writes=(32, 8)),
    ),
    (op("randn.default", [], [f32(8)], 8), Work(K.RANDOM, scalar=16, gpsimd=8, elements=8, writes=(32,))),
    # 4 * 64 + 4 * 2 cycles
    (op("topk.default", [f32(4, 16)], [f32(4, 2), i64(4, 2)], 2), Work(K.SORT, gpsimd=264, elements=64, reads=(256,), writes=(32, 64))),
    # 4 rows of 16: 64 * log2(16)
    (op("sort.default", [f32(4, 16)], [f32(4, 16), i64(4, 16)], -1, False),
     Work(K.SORT, gpsimd=256, elements=64, reads=(256,), writes=(256, 512))),
    (op("_local_scalar_dense.default", [f32()], []), Work(K.HOST_SYNC, elements=1, reads=(4,))),
    (op("t.default", [f32(4, 8)], [f32(8, 4)], view=True), Work(K.VIEW, reads=(0,), writes=(0,))),
    (op("_unsafe_view.default", [f32(4, 8)], [f32(32)], 32), Work(K.VIEW, reads=(0,), writes=(0,))),
    (Signature("neuronprof.h2d", (), (f32(8),)), Work(K.TRANSFER, elements=8, writes=(32,))),
    (Signature("neuronprof.d2h", (f32(8),), ()), Work(K.TRANSFER, elements=8, reads=(32,))),
    (
        Signature("c10d.allreduce_.default", (f32(8),), (f32(8),), (), (0,)),
        Work(K.COLLECTIVE, elements=8, reads=(32,), writes=(32, 0)),
    ),
    # nobody knows it: bytes, and one pass
    (
        Signature("mylib.relu.default", (f32(8),), (f32(8),)),
        Work(K.UNKNOWN, vector=8, elements=8, reads=(32,), writes=(32,), known=False),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("signature", "expected"), TABLE, ids=lambda v: v.name if isinstance(v, Signature) else "")
def test_cost_by_hand(signature: Signature, expected: Work) -> None:
    assert work(signature) == expected


def test_every_kind_is_in_the_table() -> None:
    assert {expected.kind for _, expected in TABLE} == set(OpKind)


def test_flops_count_a_multiply_add_as_two() -> None:
    assert work(op("mm.default", [f32(4, 16), f32(16, 8)], [f32(4, 8)])).flops == 2 * 4 * 16 * 8


def test_a_name_stands_in_one_row() -> None:
    assert sum(len(names.split()) for _, names in ROWS) == len(RULES)


def test_weight_gradient_of_a_grouped_convolution_is_the_work_done() -> None:
    # flop_counter counts `groups` times too much here; each of the 8 filters sees 2 channels, 9 taps, 2 * 4 * 4 positions
    grouped = TABLE[4][0]
    assert work(grouped).flops == 2 * 8 * 2 * 9 * 32
