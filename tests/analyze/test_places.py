"""Where chips stand in UltraServers, and what is known of each."""

import numpy as np
import pandas as pd
import pytest

from neuronprof.analyze import places
from neuronprof.analyze.places import Topology

LINKS = pd.DataFrame({"rank": [0, 1, 2], "link": ["neuronlink"] * 3, "busy": [0.5, 0.25, 0.125], "busy_ns": [4, 2, 1]})


def test_chips_behind_switches_stand_in_rows_of_their_ultraserver():
    # 9 chips of UltraServers with 8: two of them, 4 chips wide and 2 high, 5.5 apart, side by side as the picture is wide.
    found = places.plan(Topology(8, "switch", 1), 9)
    assert found.chip.tolist() == list(range(16))
    assert found.server.tolist() == [0] * 8 + [1] * 8
    assert list(zip(found.x.tolist(), found.y.tolist(), strict=True))[3:10] == [
        (3, 0), (0, 1), (1, 1), (2, 1), (3, 1), (5.5, 0), (6.5, 0),
    ]  # fmt: skip
    assert found.servers.tolist() == [pytest.approx([-0.7, -1.9, 3.7, 1.7]), pytest.approx([4.8, -1.9, 9.2, 1.7])]
    assert len(found.links) == 0


def test_a_torus_is_squares_in_which_each_chip_has_four_links():
    found = places.plan(Topology(64, "torus", 1), 64)
    # Four squares of 4 x 4: chip 16 begins the second, beside the first, chip 32 the third, below it.
    assert [(found.x[n], found.y[n]) for n in (5, 16, 32)] == [(1, 1), (4.6, 0), (0, 4.6)]
    assert len(found.links) == 4 * 64
    assert found.links[:4].tolist() == [[0.43, 0, 0.6, 0], [-0.43, 0, -0.6, 0], [0, 0.43, 0, 0.6], [0, -0.43, 0, -0.6]]


def test_256_ultraservers_fill_a_wide_picture():
    found = places.plan(Topology(128, "switch", 4), 32_768)
    width, height = np.ptp(found.x), np.ptp(found.y)
    assert len(found.chip) == 32_768
    assert len(set(zip(found.x.tolist(), found.y.tolist(), strict=True))) == 32_768
    assert 2 < width / height < 3


def test_what_is_known_of_chips():
    # Two ranks a chip, six ranks. Ranks 0 to 2 are in the trace: 0 sends 10 inside the chip, 5 and 7 out of it; 2 sends 1.
    traffic = pd.DataFrame(
        [(0, 1, 10), (0, 2, 5), (1, 4, 7), (2, 0, 1)], columns=["source", "destination", "bytes"]
    )  # fmt: skip
    totals = pd.DataFrame(
        [(0, rank, "tensor", 100, rank, 1000 + rank) for rank in range(6)],
        columns=["step", "rank", "engine", "busy_ns", "wait_peer_ns", "end_ts"],
    )
    found = places.measures(Topology(8, "switch", 2), 6, totals, traffic, LINKS)
    assert {name: (one.kind, [None if v != v else v for v in one.values.tolist()]) for name, one in found.items()} == {
        "bytes sent to other chips": ("bytes", [12, 1, None]),
        "neuronlink busy": ("share", [0.5, 0.125, None]),
        "waiting for others": ("time", [1, 3, 5]),
        "end of the step after the first rank's": ("time", [1, 3, 5]),
        "tensor busy": ("time", [100, 100, 100]),
    }


def test_a_trace_that_does_not_tell_of_its_machine_has_no_topology():
    assert Topology.of({}) is None
    known = {"neuronlink.domain": {"value": 64.0}}
    machine = {"ranks_per_chip": 2, "quantities": known, "topology": "torus"}
    assert Topology.of({"machine": machine}) == Topology(64, "torus", 2)
