"""Collectives, the traffic between ranks and the links: small traces and their complete tables."""

import itertools

import numpy as np
import picture
import pytest

import neuronprof
from neuronprof.analyze import groups
from neuronprof.analyze.communication import Communication
from neuronprof.analyze.links import Links
from neuronprof.analyze.passes import run
from neuronprof.analyze.traffic import Call, Traffic, sent
from neuronprof.graph.groups import ReplicaGroup


def tables(trace, analyzer):
    """The finished tables as text."""
    return {name: picture.table(table) for name, table in run(trace, [analyzer])[analyzer.name].items()}


def test_communication(trace):
    # machine: NeuronLink 10 GB/s a rank. Two ranks in one group of four; bytes 40 each.
    # rank 0 transfers 4 ns, of which the tensor engine hides 1; it waited 2 for the last peer
    # rank 1 transfers 4 ns, hidden by vector and tensor together, which overlap: 3; exposed 1
    # algorithm bandwidth = 2 * 40 B / 8 ns = 10 GB/s; bus = 10 * 2 * 3/4 = 15 GB/s; 15 / 10 = 1.5
    # S: a message of 10 B in 2 ns, hidden, over EFA alone (1 GB/s): 5 GB/s, factor 1, 5 times the limit
    # waits: of two the smaller is the median (half of the events), the larger the 95th percentile
    reduce = {
        "name": "AllReduce",
        "bytes": 40,
        "algorithm": "ring",
        "replica_group": "dp:0-3",
        "op_name": "c10d.allreduce",
        "phase": "backward",
    }
    events = picture.rows(
        """
        tensor aaa..........
        cc     ~~RRRR.......
        rank 1
        tensor ...aa......aa
        vector ..vvv........
        cc     ..RRRR.....SS
        efa    ...........SS
        """,
        {"R": reduce, "S": {"name": "Send", "bytes": 10, "replica_group": "pp:1>4"}},
    )
    assert tables(trace(events, [picture.segment(0, 13)]), Communication()) == {
        "communication": [
            "name algorithm replica_group bytes op_name layer phase source axis ranks count transfer_ns wait_ns overlapped_ns exposed_ns "
            "transfer_p50_ns transfer_p95_ns transfer_max_ns wait_p50_ns wait_p95_ns wait_max_ns outliers overlapped "
            "algorithm_bandwidth bus_bandwidth link link_share",
            "AllReduce ring dp:0-3 40 c10d.allreduce '' backward '' dp 4 2 8 2 4 4 4 4 4 0 2 2 0 0.5 1e+10 1.5e+10 '' 1.5",
            "Send '' pp:1>4 10 '' '' '' '' pp 2 1 2 0 2 0 2 2 2 0 0 0 0 1 5e+09 5e+09 efa 5",
        ],
        "communication_by_rank": [
            "rank bytes count transfer_ns wait_ns overlapped_ns exposed_ns",
            "0 40 1 4 2 1 3",
            "1 50 2 6 0 5 1",
        ],
        "communication_outliers": [
            "step collective name algorithm replica_group bytes start_ts transfer_ns wait_ns rank median_ns times_median"
        ],
    }


@pytest.mark.parametrize(
    ("name", "group", "share"),
    [("AllReduce", "dp:0-7", 2 * 7 / 8), ("AllGather", "dp:0-24:8", 3 / 4), ("ReduceScatter", "tp:0,4", 1 / 2),
     ("AllToAll", "ep:0-3,8-11", 7 / 8), ("Permute", "cp:0-7", 1), ("AllReduce", None, np.nan)],
)  # fmt: skip
def test_bus_bandwidth_by_collective(trace, name, group, share):
    # 10 bytes in 1 ns are all of the link's 10 GB/s, before the factor
    events = picture.rows("cc C", {"C": {"name": name, "replica_group": group, "bytes": 10}})
    found = run(trace(events, [picture.segment(0, 1)]), [Communication()])["communication"]["communication"]
    assert found["link_share"].tolist() == pytest.approx([share], nan_ok=True)


def test_outliers_are_found_against_like_collectives_of_all_groups(trace):
    # Eight groups of two along dp reduce 8 bytes: seven in 4 ns, that of ranks 6 and 7 in 7 ns, more than 1.5 times the median of 4.
    # The message of 9 bytes has no like and so is none, long as it is.
    events = []
    for pair in range(8):
        length = 7 if pair == 3 else 4
        about = {"name": "AllReduce", "bytes": 8, "replica_group": f"dp:{2 * pair}-{2 * pair + 1}", "collective": pair}
        for rank in (2 * pair, 2 * pair + 1):
            events += picture.rows(f"rank {rank}\ncc {'R' * length}", {"R": about})
    events += picture.rows("cc ........MMMMMMMMMMMM", {"M": {"name": "Send", "bytes": 9, "replica_group": "pp:0>8"}})
    found = run(trace(events, [picture.segment(0, 20)]), [Communication()])["communication"]
    outliers = found["communication"].set_index("replica_group")["outliers"]
    assert outliers[outliers > 0].to_dict() == {"dp:6-7": 2}
    assert picture.table(found["communication_outliers"])[1:] == ["0 3 AllReduce '' dp:6-7 8 0 7 0 6 4 1.75"]


def test_percentiles_are_of_single_events(trace):
    # transfers of 1, 2, ... 20 ns: half are at most 10, 19 of 20 (95 %) at most 19
    about = {"name": "AllReduce", "bytes": 8, "replica_group": "dp:0-1"}
    events = [
        {**picture.rows("cc R", {"R": about})[0], "start_ts": 100 * n, "duration_ns": n, "collective": n} for n in range(1, 21)
    ]  # fmt: skip
    found = run(trace(events, [picture.segment(0, 3000)]), [Communication()])["communication"]["communication"]
    columns = ["count", "transfer_ns", "transfer_p50_ns", "transfer_p95_ns", "transfer_max_ns"]
    assert found[columns].to_numpy().tolist() == [[20, 210, 10, 19, 20]]


@pytest.mark.parametrize("extents", [((8, 1),), ((4, 8),), ((4, 1), (8, 16)), ((2, 1), (3, 4)), ((4, 2), (5, 16)),
                                     ((2, 1), (2, 4), (4, 16)), ((1, 1),), ((4, 1), (2, 16)), ((2, 4), (8, 32)), ()])  # fmt: skip
def test_members_are_read_from_what_the_recorder_writes(extents):
    group = ReplicaGroup("dp+cp", extents)
    for rank in (0, 3, 200):
        text = group.text(rank)
        assert groups.axis(text) == "dp+cp"
        assert groups.members(text).tolist() == group.members(rank).tolist()


@pytest.mark.parametrize("text", ["", "world", "dp:", "dp:all", "tp:0-3,x"])
def test_a_group_that_says_nothing_has_no_members(text):
    assert groups.members(text) is None


def laid(name, algorithm, group, nbytes, server=0):
    """Everything that all ranks of a group send: {(source, destination): (bytes, messages)}."""
    found = {}
    for rank in groups.members(group).tolist():
        for destinations, size, messages in sent(Call(rank, name, algorithm, group, nbytes), server):
            for to in destinations.tolist():
                before = found.get((rank, to), (0, 0))
                found[rank, to] = (before[0] + size, before[1] + messages)
    return found


RING = {(0, 1): 1, (1, 2): 1, (2, 3): 1, (3, 0): 1}
EVERY = dict.fromkeys(itertools.permutations(range(4), 2), 1)


@pytest.mark.parametrize(
    ("name", "algorithm", "pairs", "nbytes", "messages"),
    [
        (
            "AllReduce",
            "ring",
            RING,
            2 * 48 * 3 / 4,
            6,
        ),  # to the next one, n - 1 messages of a quarter in each of two passes
        ("AllGather", "kangaring", RING, 48 * 3 / 4, 3),
        ("ReduceScatter", "", RING, 48 * 3 / 4, 3),
        ("AllReduce", "mesh", EVERY, 2 * 48 / 4, 2),
        ("AllToAll", "", EVERY, 48 / 4, 1),
        ("AllReduce", "single-step-mesh", EVERY, 48, 1),
        ("Permute", "mesh", RING, 48, 1),
        ("Broadcast", "mesh", EVERY, 48 / 4 * 5 / 4, 2),
        ("AllReduce", "in-switch", EVERY, 48 * 5 / 4 / 3, 1),
    ],
)
def test_traffic_of_a_collective_among_four_in_closed_form(name, algorithm, pairs, nbytes, messages):
    assert laid(name, algorithm, "dp:0-3", 48) == {pair: (pytest.approx(nbytes), messages) for pair in pairs}


def test_traffic_of_recursive_halving():
    # ranks 0, 8, 16, 24: half of S to the neighbour in the group, a quarter to the one two places away, twice for an AllReduce
    near, far = [(0, 8), (8, 0), (16, 24), (24, 16)], [(0, 16), (16, 0), (8, 24), (24, 8)]
    assert laid("AllReduce", "rdh", "dp:0-24:8", 48) == dict.fromkeys(near, (48, 2)) | dict.fromkeys(far, (24, 2))


def test_traffic_of_a_hierarchical_collective():
    # UltraServers of two ranks, 0 1 | 2 3: half of S to the other one inside, twice; of the half that a rank then has, half to the rank of
    # the same place in the other UltraServer, twice
    inside, between = [(0, 1), (1, 0), (2, 3), (3, 2)], [(0, 2), (2, 0), (1, 3), (3, 1)]
    expected = dict.fromkeys(inside, (48, 2)) | dict.fromkeys(between, (24, 2))
    assert laid("AllReduce", "hierarchical", "dp:0-3", 48, server=2) == expected


def test_traffic(trace):
    # two AllReduces of 8 bytes in a ring of two: 2 * 8 * 1/2 = 8 bytes each way and time; a message that only its sender counts;
    # evaluation does not count; a group without members goes to -1
    about = {
        "R": {"name": "AllReduce", "algorithm": "ring", "bytes": 8, "replica_group": "tp:0-1"},
        "S": {"name": "Send", "algorithm": "mesh", "bytes": 5, "replica_group": "pp:0>1"},
        "V": {"name": "Recv", "algorithm": "mesh", "bytes": 5, "replica_group": "pp:0>1"},
        "E": {"name": "AllReduce", "algorithm": "ring", "bytes": 99, "replica_group": "tp:0-1", "step": -1},
        "U": {"name": "AllReduce", "bytes": 7},
    }
    events = picture.rows("cc RRSS.RRE\nrank 1\ncc RR.VURRE", about)
    found = tables(trace(events, [picture.segment(0, 7), picture.segment(7, 8, -1)]), Traffic())
    assert found["traffic"] == [
        "source destination axis bytes messages",
        "0 1 tp 16 4",
        "1 0 tp 16 4",
        "1 -1 '' 7 1",
        "0 1 pp 5 1",
    ]


def test_links(trace):
    # NeuronLink 10 B/ns a rank, EFA 1. Two buckets of 4 ns; the first transfer of 12 bytes lies with 2 of 3 ns in the first one.
    #   rank 0  neuronlink  ..AAA..B    12 and 4 bytes
    #           efa         CCCCCCCC    8 bytes
    events = picture.rows(
        """
        neuronlink ..AAA..B
        efa        CCCCCCCC
        """,
        {"A": {"bytes": 12}, "B": {"bytes": 4}, "C": {"bytes": 8}},
    )
    assert tables(trace(events, [picture.segment(0, 8)]), Links(buckets=2)) == {
        "links": [
            "rank chip link transfers bytes busy_ns busy bandwidth limit limit_share",
            "0 0 neuronlink 2 16 4 0.5 4e+09 1e+10 0.4",
            "0 0 efa 1 8 8 1 1e+09 1e+09 1",
        ],
        "links_over_time": [
            "rank chip link start_ts duration_ns bytes busy_ns busy",
            "0 0 neuronlink 0 4 8 2 0.5",
            "0 0 neuronlink 4 4 8 2 0.5",
            "0 0 efa 0 4 4 4 1",
            "0 0 efa 4 4 4 4 1",
        ],
    }


SCRIPT = """
import torch
from torch import nn
model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).to("neuron")
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(3):
    loss = model(torch.randn(32, 64, device="neuron")).square().mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
"""


def test_what_leaves_the_chips_is_what_the_links_carried(tmp_path):
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    (tmp_path / "train.py").write_text(SCRIPT)
    path = tmp_path / "trace.parquet"
    neuronprof.record(tmp_path / "train.py", output=path, values="none", steps=2, quiet=True, dp=4, tp=4)
    trace = neuronprof.load(path)
    found = neuronprof.analyze(trace, "communication", "traffic", "links")
    traffic, links = found["traffic"], found["links"]
    crossing = traffic[traffic["source"] // 4 != traffic["destination"] // 4]
    events = trace.events
    on_links = events[events["engine"].isin(["neuronlink", "efa"])]
    assert 0 < crossing["bytes"].sum() == links["bytes"].sum() == on_links["bytes"].sum()
    by_rank = found["communication_by_rank"]
    assert by_rank[["count", "transfer_ns", "exposed_ns"]].sum().tolist() == (
        found["communication"][["count", "transfer_ns", "exposed_ns"]].sum().tolist()
    )
    over_time = found["links_over_time"].groupby("rank")[["bytes", "busy_ns"]].sum()
    assert over_time.equals(links.groupby("rank")[["bytes", "busy_ns"]].sum())
