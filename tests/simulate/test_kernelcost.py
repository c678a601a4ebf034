"""What kernels cost, by hand: 8 SMs that together make 2 x 128 x 128 FLOP a nanosecond, 4096 each; 1000 bytes a nanosecond."""

import numpy as np
import pytest
import toys

from neuronprof.program import Access, Opcode
from neuronprof.simulate import kernelcost


def gemm_ns(m, k, n, itemsize=2, batch=1, **fields):
    chip = toys.gpu(**fields)
    operands = np.array([[batch, m, k, n]], float)
    return kernelcost.gemm(operands, np.array([itemsize]), chip, chip.kernels)[0] * 1e9


def test_a_product_takes_whole_waves_of_tiles():
    # A tile of 128 x 64 with K = 512: 2 * 128 * 64 * 512 / 4096 = 2048 ns. 8 of them are one wave, 9 are two; but tiles of 32 x 32, an
    # eighth of that, cover 9 x 128 by 64 in 72: nine waves of 256 ns.
    assert gemm_ns(8 * 128, 512, 64) == pytest.approx(2048)
    assert gemm_ns(9 * 128, 512, 64) == pytest.approx(9 * 256)
    assert gemm_ns(128, 512, 64, batch=8) == pytest.approx(2048)


def test_small_tiles_and_short_contractions_lose():
    # Tiles of 128 x 64 and no smaller ones would do 8 of 128 x 64 in 2048 ns; a prologue of 512 doubles that.
    assert gemm_ns(8 * 128, 512, 64, prologue=512) == pytest.approx(4096)
    # operands = 64: a multiply-add of the largest tile costs 1 + 64 / 128 + 64 / 64 = 2.5, of one of 32 x 32 1 + 2 + 2 = 5: twice 256 ns.
    assert gemm_ns(64, 512, 32, operands=64) == pytest.approx(2 * 256)


def test_formats():
    assert gemm_ns(1024, 512, 64, itemsize=1) == pytest.approx(1024)  # FP8 twice as fast
    assert gemm_ns(1024, 512, 64, itemsize=4) == pytest.approx(4 * 2048)  # a quarter of the peak
    assert gemm_ns(1024, 512, 64, itemsize=1, gemm_fp8=0.5) == pytest.approx(2048)


def test_attention_and_memory():
    chip = toys.gpu()
    operands = np.array(
        [[16, 128, 64, 256]], float
    )  # 2 * 16 * 128 * 64 * 256 FLOP at half, or a quarter, of 32768 a ns
    forward = kernelcost.attention(operands, np.array([2]), Opcode.ATTENTION, chip, chip.kernels)
    backward = kernelcost.attention(operands, np.array([2]), Opcode.ATTENTION_BACKWARD, chip, chip.kernels)
    assert forward * 1e9 == pytest.approx([4096])
    assert backward * 1e9 == pytest.approx([8192])
    moves = np.array([[1e6, 1e6, access, 0] for access in Access], float)
    assert kernelcost.hbm(moves, chip, chip.kernels) * 1e9 == pytest.approx([1000, 2000, 4000])
