import json

import pytest

from neuronprof.cli import main

TOY = """
base = "trainium4"
[neuronlink]
bandwidth = { value = 100_000_000_000, unit = "B/s", provenance = "assumed", source = "for a test" }
efficiency = { value = 1, unit = "fraction", provenance = "assumed", source = "for a test" }
latency = { value = 1e-6, unit = "s", provenance = "assumed", source = "for a test" }
start = { value = 1e-6, unit = "s", provenance = "assumed", source = "for a test" }
local_bandwidth = { value = 1e15, unit = "B/s", provenance = "assumed", source = "for a test" }
"""


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(TOY)
    return str(path)


def test_a_row_a_size(toy, capsys):
    # 8 ranks, one on each of 8 chips, among 4 ranks a chip that do the same, 1 MB: by a ring 14 steps and 4 x 1.75 MB at 100 GB/s.
    line = [
        "--chip",
        toy,
        "--ranks",
        "8",
        "--stride",
        "4",
        "--algorithm",
        "ring",
        "--sizes",
        "1M,2M",
        "--dtype",
        "bfloat16",
    ]
    assert main(["collectives", *line]) == 0
    title, _, head, *rows = capsys.readouterr().out.splitlines()
    assert title == "all_reduce on toy: 8 ranks, 8 chips, 1 UltraServer"
    assert head.split("  ")[-1] == "busbw (GB/s)"
    # 15 + 4 * 1.75 * 1048576 / 1e5 = 88.4 us; 1048576 / 88.4 us = 11.86 GB/s, times 1.75
    assert [row.split() for row in rows] == [
        ["1048576", "524288", "bfloat16", "ring", "88.40", "11.86", "20.76"],
        ["2097152", "1048576", "bfloat16", "ring", "161.80", "12.96", "22.68"],
    ]


def test_json(toy, capsys):
    line = [
        "--chip",
        toy,
        "--ranks",
        "512",
        "--stride",
        "4",
        "--collective",
        "all_gather",
        "--sizes",
        "1K..4K",
        "--json",
    ]
    assert main(["collectives", *line]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {k: found[k] for k in ("chip", "collective", "ranks", "stride")} == {
        "chip": "toy", "collective": "all_gather", "ranks": 512, "stride": 4,
    }  # fmt: skip
    assert [row["size"] for row in found["rows"]] == [1024, 2048, 4096]
    # 512 chips are four UltraServers: 127/128 of the size inside, 3/4 of a 128th of it between
    assert [(row["algorithm"], row["neuronlink_bytes"], row["efa_bytes"]) for row in found["rows"]] == [
        ("hierarchical", 1016, 6), ("hierarchical", 2032, 12), ("hierarchical", 4064, 24),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--sizes", "1G..1K"], "--sizes 1G..1K cannot be read; write it like 1K..1G, the smaller first, or 1K,64K,25M."),
        (["--ranks", "0"], "--ranks and --stride must be at least 1."),
        (["--ranks", "1000000"], "1000000 ranks are more than the 131072 of an UltraCluster of trainium4; give fewer."),
        (["--dtype", "float3"], "There is no dtype 'float3'; choose one of "),
        (["--uneven", "0.5"], "--uneven 0.5 is below 1; the busiest rank sends no less than the mean."),
        (["--oversubscription", "0.5"], "An oversubscription of 0.5 is not 1 or more; give how many times more is sent than fits through."),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(wrong, said, capsys):
    assert main(["collectives", *wrong]) == 2
    assert said in capsys.readouterr().err
