"""Analyzers on the cores of this machine and on a real Dask cluster, and analyzers that users write."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pandas as pd
import picture
import pytest
from longest import Killer, Longest

import neuronprof
from neuronprof.analyze import registry
from neuronprof.cli import main
from neuronprof.errors import NeuronprofError


@pytest.fixture
def trace(tmp_path):
    """Four chips of one rank, whose matmul takes 3, 4, 5 and 6 ns."""
    lines = [f"rank {4 * chip}\ntensor {'a' * (3 + chip)}......\ncc ~~..{'C' * 4}" for chip in range(4)]
    events = picture.rows("\n".join(lines).replace("cc ~~..", "cc ....~"), {})
    return str(picture.write(tmp_path / "trace.parquet", events, [picture.segment(0, 12)]))


def same(a, b):
    assert a.keys() == b.keys()
    for name, table in a.items():
        pd.testing.assert_frame_equal(table, b[name])


def test_an_analyzer_of_a_user(trace):
    assert picture.table(neuronprof.analyze(trace, Longest())["longest"]) == [
        "name duration_ns",
        "AllReduce 4",
        "MATMUL 6",
    ]
    same(
        neuronprof.analyze(neuronprof.load(trace), "utilization", Longest()),
        neuronprof.analyze(trace, "utilization", Longest()),
    )


def test_workers_change_nothing(trace):
    same(neuronprof.analyze(trace, workers=2), neuronprof.analyze(trace))


def test_an_installed_analyzer_is_like_the_others(trace, capsys, monkeypatch):
    offer(monkeypatch, "longest:Longest")
    assert main(["analyze", trace, "longest", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["analyses"]["longest"][1] == {"name": "MATMUL", "duration_ns": 6}
    assert "longest" in neuronprof.analyze(trace)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("longest:Nothing", "cannot be loaded"),
        ("pathlib:Path", "is no neuronprof.analyze.analyzer.Analyzer"),
        ("neuronprof.analyze.memory:Memory", "has a table 'memory', as another has"),
    ],
)
def test_an_installed_analyzer_that_is_none_is_one_sentence(monkeypatch, value, sentence):
    offer(monkeypatch, value)
    with pytest.raises(NeuronprofError, match=sentence):
        registry.find("longest")


def offer(monkeypatch, value):
    registry.installed.cache_clear()
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("x", value, group)])


@pytest.fixture(autouse=True)
def forget():
    yield
    registry.installed.cache_clear()


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers as processes of their own; yields the address."""
    pytest.importorskip("distributed", reason="needs the extra 'dask'")
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)])}
    file = tmp_path / "scheduler.json"
    common = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    dask = [sys.executable, "-m", "dask"]
    scheduler = [*dask, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    worker = [*dask, "worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard"]
    started = [subprocess.Popen(command, **common) for command in (scheduler, worker, worker)]
    until = time.monotonic() + 120
    while not file.exists() or not file.read_text().endswith("}"):
        assert time.monotonic() < until, "no scheduler came up"
        time.sleep(0.2)
    yield json.loads(file.read_text())["address"]
    for process in reversed(started):
        process.send_signal(signal.SIGINT)
    for process in started:
        process.wait(60)


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_changes_nothing_even_if_a_worker_dies(trace, cluster, tmp_path, capsys):
    from distributed import Client

    with Client(cluster, timeout=60) as client:
        client.wait_for_workers(2, timeout=120)
        same(neuronprof.analyze(trace, client=client), neuronprof.analyze(trace))
        killer = Killer(marker=str(tmp_path / "killed"))
        same(neuronprof.analyze(trace, killer, client=client), neuronprof.analyze(trace, Longest()))
        assert (tmp_path / "killed").exists()
    assert main(["analyze", trace, "--json", "--dask", cluster]) == 0
    on_cluster = json.loads(capsys.readouterr().out)
    assert main(["analyze", trace, "--json"]) == 0
    assert on_cluster == json.loads(capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_does_not_answer_is_one_sentence(trace, capsys, monkeypatch):
    pytest.importorskip("distributed", reason="needs the extra 'dask'")
    monkeypatch.setattr("neuronprof.analyze.execution._PATIENCE", 1)
    assert main(["analyze", trace, "--dask", "tcp://127.0.0.1:9"]) == 2
    assert "No Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
