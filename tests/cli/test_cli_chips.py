import argparse
import json

import pytest

from neuronprof.cli import chips
from neuronprof.errors import NeuronprofError
from neuronprof.hardware.load import chip_names, load_chip


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    chips.add_arguments(parser)
    return chips.run(parser.parse_args(arguments))


def test_overview_lists_every_chip(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    names = chip_names()
    assert [line.split()[0] for line in lines[1 : 1 + len(names)]] == names
    described = 1 + names.index("trainium4")
    # 6 x 671 TFLOPS, 6 x 2517 TFLOPS, 16 x 24 GiB, 4 x 4.9 TB/s, 4 x 2.56 TB/s, 8 cores
    assert " ".join(lines[described].split()) == "trainium4 4.03 PFLOP/s 15.1 PFLOP/s 384 GiB 19.6 TB/s 10.2 TB/s 8"
    header, row = (
        next(line.split() for line in lines if "documented" in line),
        lines[described + len(names) + 3].split(),
    )
    counts = dict(zip(header, row, strict=False))
    assert counts["chip"] == "trainium4"
    assert counts["reported"] == "6"
    numbers = load_chip("trainium4").quantities
    assert sum(int(counts[p]) for p in header[1:-1]) == len(numbers)
    assert max(map(len, lines)) <= 120


def test_one_chip_shows_each_number_with_its_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert run("trainium1") == 0
    out = capsys.readouterr().out
    text = " ".join(out.split())
    for key, quantity in load_chip("trainium1").quantities.items():
        assert f" {key.partition('.')[2]} " in text
        assert quantity.source in text
    assert "clock 2.8 GHz documented" in text
    assert "launch 97.5 us assumed" in text
    assert "efficiency_4096 100.0 % assumed" in text
    assert "sbuf 24 MiB documented" in text
    assert "hour 0.512 USD/h documented" in text
    assert max(map(len, out.splitlines())) <= 60


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trainium2", "--json") == 0
    chip = json.loads(capsys.readouterr().out)
    assert chip["chip"] == "trainium2"
    assert chip["topology"] == "torus"
    assert {k: v for k, v in chip["quantities"]["package.hbm_bandwidth"].items() if k != "source"} == {
        "value": 2.9e12,
        "unit": "B/s",
        "provenance": "documented",
    }
    assert run("--json") == 0
    assert [c["chip"] for c in json.loads(capsys.readouterr().out)] == chip_names()


def test_unknown_chip() -> None:
    with pytest.raises(NeuronprofError, match="did you mean 'trainium4'"):
        run("trainium5")
