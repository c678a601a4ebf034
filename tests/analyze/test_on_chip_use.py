"""SBUF and PSUM over time: what is held at the peak and on average, and that HBM's figures know nothing of them."""

import picture

from neuronprof.analyze.memory import Memory
from neuronprof.analyze.onchip import OnChipUse
from neuronprof.analyze.passes import run

#          ns 0         10        20
RESIDENT = "..444444222222......"
TILES = "1.335555....11......"
SUMS = "....2244............"
ALONE = "6666666666666666...."  # rank 1
MACHINE = {"rank": picture.MACHINE | {"sbuf_capacity": 10, "psum_capacity": 8}}


def levels():
    found = [
        (RESIDENT, "resident", "sbuf", 0),
        (TILES, "tiles", "sbuf", 0),
        (SUMS, "partial_sums", "psum", 0),
        (ALONE, "tiles", "sbuf", 1),
    ]
    return [row for drawn, name, engine, rank in found for row in picture.levels(drawn, name, 1, rank, engine)]


def tables(trace, rows):
    segments = [picture.segment(0, 16), picture.segment(16, 20, -1)]
    return run(trace(rows, segments, machine=MACHINE), [OnChipUse(), Memory()])


def test_peaks_and_means(trace):
    # Rank 0: most in SBUF at 4 ns, 4 + 5 of 10 bytes; 36 resident and 29 in tiles over 16 ns are 4.0625. PSUM: 4 at 6 ns, 12 / 16 = 0.75.
    # Rank 1 holds 6 all the time, so that the ranks' mean is 5.03.
    found = {name: picture.table(table) for name, table in tables(trace, levels())["on_chip"].items()}
    assert found == {
        "on_chip": [
            "memory rank peak_ts resident_bytes tiles_bytes partial_sums_bytes peak_bytes mean_bytes limit_bytes peak_share mean_share",
            "sbuf 0 4 4 5 0 9 5.031 10 0.9 0.5031",
            "psum 0 6 0 0 4 4 0.75 8 0.5 0.09375",
        ],
        "on_chip_by_rank": [
            "rank memory peak_ts peak_bytes mean_bytes limit_bytes peak_share mean_share",
            "0 sbuf 4 9 4.062 10 0.9 0.4062",
            "0 psum 6 4 0.75 8 0.5 0.09375",
            "1 sbuf 0 6 6 10 0.6 0.6",
        ],
    }


def test_hbm_has_its_own_figures(trace):
    hbm = picture.levels("....777.....", "weights")
    alone, together = (tables(trace, rows)["memory"] for rows in (hbm, hbm + levels()))
    for name, table in alone.items():
        assert picture.table(together[name]) == picture.table(table)


def test_a_trace_that_does_not_tell_has_no_rows(trace):
    rows = picture.rows("tensor aaaa")
    assert [len(table) for table in tables(trace, rows)["on_chip"].values()] == [0, 0]


def test_sorts_that_nobody_knows_count_as_nothing(trace):
    by_rank = tables(trace, picture.levels("..33..", "stuff", 1, 0, "sbuf"))["on_chip"]["on_chip_by_rank"]
    assert by_rank["peak_bytes"].sum() == 0
