"""Chrome JSON and CSV of a trace."""

import gzip
import json

import pandas as pd
import picture
import pytest

import neuronprof
from neuronprof.cli import main


@pytest.fixture
def trace(tmp_path):
    """A load of 2 us releases a matmul of 3 us; HBM holds 5 bytes of weights for 4 us, then 7 for 2 us, SBUF 3 in tiles for 2 us."""
    events = picture.rows("tensor ..aaa.\ndma    aa....", {"a": {"op_name": "aten.mm", "flops": 8}}, scale=1000)
    events += picture.levels("555577", "weights", scale=1000)
    events += picture.levels("....33", "tiles", scale=1000, engine="sbuf")
    for number, event in enumerate(events):
        event |= {"id": number, "released_by": 1 if number == 0 else -1}
    return str(picture.write(tmp_path / "trace.parquet", events, [picture.segment(0, 6000)]))


def test_chrome_json(trace, tmp_path, capsys):
    assert main(["export", trace, "-o", str(tmp_path / "t.json.gz")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 't.json.gz'}: 2 events\n"
    events = json.loads(gzip.decompress((tmp_path / "t.json.gz").read_bytes()))["traceEvents"]
    of = {ph: [e for e in events if e["ph"] == ph] for ph in "XMsfC"}
    assert [(e["name"], e["pid"], e["ts"], e["dur"], e["args"]["opcode"]) for e in of["X"]] == [
        ("aten.mm", 0, 2.0, 3.0, "MATMUL"),
        ("aten.mm", 0, 0.0, 2.0, "DMA_LOAD"),
    ]
    assert [e["args"].get("name") for e in of["M"] if "name" in e["args"]] == ["rank 0", "tensor 0", "dma 0"]
    tensor, dma = (e["tid"] for e in of["X"])
    assert [(e["tid"], e["ts"]) for e in of["s"] + of["f"]] == [(dma, 1.999), (tensor, 2.0)]
    assert [(e["name"], e["ts"], e["args"]["bytes"]) for e in of["C"]] == [
        ("HBM weights", 0.0, 5),
        ("HBM weights", 4.0, 7),
        ("HBM weights", 6.0, 0),
        ("SBUF tiles", 4.0, 3),
        ("SBUF tiles", 6.0, 0),
    ]


def test_csv_of_a_time_range(trace, tmp_path, capsys):
    assert main(["export", trace, "-o", str(tmp_path / "t.csv"), "--start", "2us", "--end", "4us"]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 't.csv'}: 2 events\n"
    found = pd.read_csv(tmp_path / "t.csv")
    assert found[["name", "start_ts"]].to_numpy().tolist() == [["MATMUL", 2000], ["weights", 0]]
    assert main(["export", trace, "-o", str(tmp_path / "all.csv")]) == 0
    every, events = pd.read_csv(tmp_path / "all.csv"), neuronprof.load(trace).events
    assert list(every) == list(events)
    numbers = events.select_dtypes("number").columns
    assert (every[numbers] == events[numbers]).all().all()


def test_what_cannot_be_written_is_one_sentence(trace, tmp_path, capsys):
    for output, sentence, more in (
        ("no/t.json", "does not exist", []),
        ("t.json", "no events of rank 4", ["--rank", "4"]),
    ):
        assert main(["export", trace, "-o", str(tmp_path / output), *more]) == 2
        assert sentence in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["trace.parquet"]
