from hypothesis import given
from hypothesis import strategies as st

from neuronprof.compile import tile
from neuronprof.graph.ops import Gemm


def test_split_cuts_at_whole_tiles():
    assert tile.split(1000, 512, 2) == [512, 488]
    assert tile.split(2048, 512, 3) == [512, 512, 1024]
    assert tile.split(100, 512, 4) == [100]


@given(st.integers(1, 5000), st.integers(1, 600), st.integers(1, 40))
def test_split_loses_nothing(extent, size, parts):
    pieces = tile.split(extent, size, parts)
    assert sum(pieces) == extent
    assert len(pieces) <= parts
    assert all(p % size == 0 for p in pieces[:-1])
    assert all(p > 0 for p in pieces)


@given(st.integers(1, 9), st.integers(1, 900), st.integers(1, 900), st.integers(1, 4000), st.integers(1, 50))
def test_split_gemm_keeps_every_product(batch, m, k, n, parts):
    gemm = Gemm(batch, m, k, n)
    assert sum(g.flops for g in tile.split_gemm(gemm, parts, 128, 512)) == gemm.flops


def test_orient_keeps_the_array_full():
    # (1024, 16): 8 stationary tiles of 64 cycles (16 moving columns take the shortest interval) are 512 cycles;
    # (16, 1024): one stationary tile with 1024 moving columns is 1024 cycles.
    assert tile.orient(Gemm(1, 1024, 64, 16), 128, 512, 64) == Gemm(1, 1024, 64, 16)
    # (512, 128): 4 x 128 = 512 cycles; its transpose 1 x 512 = 512: the same, so it stays.
    assert tile.orient(Gemm(1, 512, 64, 128), 128, 512, 64) == Gemm(1, 512, 64, 128)
    # (129, 512): 2 x 512 = 1024 cycles; its transpose 4 x max(129, 64) = 516.
    assert tile.orient(Gemm(1, 129, 64, 512), 128, 512, 64) == Gemm(1, 512, 64, 129)


def test_pieces_follow_capacity_first_and_overlap_second():
    mib = 2**20
    assert tile.pieces(100, 12 * mib) == 1  # nothing to overlap
    assert tile.pieces(4 * mib, 12 * mib) == 4  # a MiB a piece
    assert tile.pieces(64 * mib, 200 * mib) == 8  # no more than needed for overlap
    assert tile.pieces(96 * mib, 12 * mib) == 24  # 4 MiB are a third of what three tiles share
    assert tile.pieces(960 * mib, 12 * mib) == 32  # a piece stands for several tiles


def test_a_matmul_that_fits_reads_its_operands_once():
    # 256 x 512 x 2 bytes = 256 KiB stays while the other streams: nothing is read again.
    mib = 2**20
    assert tile.read_again(mib // 4, 8 * mib, 8 * mib, mib) == 0


def test_a_matmul_that_does_not_fit_streams_the_smaller_side_again():
    # (1024, 1024) x (1024, 4096): left 2 MiB, right 8 MiB, sums 16 MiB, a panel of 1 MiB.
    # Left in 2 panels, right twice: 2 + 16 = 18; right in 8 panels, left 8 times: 8 + 16 = 24; 16 blocks of sums, at best 8 columns of
    # 2 rows: 2 x 8 + 8 x 2 = 32. 18 - 10 = 8 MiB more.
    mib = 2**20
    assert tile.read_again(2 * mib, 8 * mib, 16 * mib, 2 * mib) == 8 * mib


def test_a_long_contraction_keeps_the_sums_and_reads_once():
    # The gradient of a weight, (512, 65536) x (65536, 512): operands of 64 MiB, sums of 1 MiB that fit the panel.
    mib = 2**20
    assert tile.read_again(64 * mib, 64 * mib, mib, 2 * mib) == 0
    # With half the panel the sums are 2 blocks: one operand is read twice.
    assert tile.read_again(64 * mib, 64 * mib, mib, mib) == 64 * mib
