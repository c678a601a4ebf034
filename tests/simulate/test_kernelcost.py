"""What kernels cost, by hand: 8 SMs that together make 2 x 128 x 128 FLOP a nanosecond, 4096 each; 1000 bytes a nanosecond."""

import pytest
import toys

from neuronprof.compile.builder import ProgramBuilder
from neuronprof.program import Access, Opcode, Queue
from neuronprof.simulate import priced
from neuronprof.simulate.job import Job


def took(opcode, shape, dtype="bfloat16", **fields):
    """Nanoseconds of an instruction, without the gap before its kernel."""
    builder = ProgramBuilder()
    builder.add(opcode, Queue.TENSOR, 0, shape, dtype=dtype)
    job = Job(toys.gpu(**{"gap": 1e-12, **fields}), 1, 1)
    return priced.durations(builder.finish([], {}), job)[0] / 1000


def gemm_ns(m, k, n, dtype="bfloat16", batch=1, **fields):
    return took(Opcode.MATMUL, (batch, m, k, n), dtype, **fields)


def test_a_product_takes_whole_waves_of_tiles():
    # A tile of 128 x 64 with K = 512: 2 * 128 * 64 * 512 / 4096 = 2048 ns. 8 of them are one wave, 9 are two; but tiles of 32 x 32, an
    # eighth of that, cover 9 x 128 by 64 in 72: nine waves of 256 ns.
    assert gemm_ns(8 * 128, 512, 64) == pytest.approx(2048, rel=1e-5)
    assert gemm_ns(9 * 128, 512, 64) == pytest.approx(9 * 256, rel=1e-5)
    assert gemm_ns(128, 512, 64, batch=8) == pytest.approx(2048, rel=1e-5)


def test_small_tiles_and_short_contractions_lose():
    # Tiles of 128 x 64 and no smaller ones would do 8 of 128 x 64 in 2048 ns; a prologue of 512 doubles that.
    assert gemm_ns(8 * 128, 512, 64, prologue=512) == pytest.approx(4096, rel=1e-5)
    # operands = 64: a multiply-add of the largest tile costs 1 + 64 / 128 + 64 / 64 = 2.5, of one of 32 x 32 1 + 2 + 2 = 5: twice 256 ns.
    assert gemm_ns(64, 512, 32, operands=64) == pytest.approx(2 * 256, rel=1e-5)


def test_formats():
    assert gemm_ns(1024, 512, 64, "float8_e4m3fn") == pytest.approx(1024, rel=1e-5)  # FP8 twice as fast
    assert gemm_ns(1024, 512, 64, "float32") == pytest.approx(4 * 2048, rel=1e-5)  # a quarter of the peak
    assert gemm_ns(1024, 512, 64, "float8_e4m3fn", gemm_fp8=0.5) == pytest.approx(2048, rel=1e-5)


def test_the_tile_that_was_chosen_is_told():
    builder = ProgramBuilder()
    builder.add(Opcode.MATMUL, Queue.TENSOR, 0, (1, 9 * 128, 512, 64), dtype="bfloat16")
    _, words = priced.texts(builder.finish([], {}), Job(toys.gpu(), 1, 1))
    assert words == ["gemm batch=1 M=1152 K=512 N=64 itemsize=2 a=32 b=32"]


def test_attention_and_memory():
    # 2 * 16 * 128 * 64 * 256 FLOP at half, or a quarter, of 32768 a ns
    assert took(Opcode.ATTENTION, (16, 128, 64, 256)) == pytest.approx(4096, rel=1e-5)
    assert took(Opcode.ATTENTION_BACKWARD, (16, 128, 64, 256)) == pytest.approx(8192, rel=1e-5)
    moves = [took(Opcode.DMA_LOAD, (10**6, 10**6, access, 0)) for access in Access]
    assert moves == pytest.approx([1000, 2000, 4000])
