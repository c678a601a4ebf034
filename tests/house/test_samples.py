"""The sample traces are what their commands make."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import neuronprof

SAMPLES = Path(__file__).parents[2] / "sample_traces"
COMMANDS = dict(
    re.findall(r"^\| `(\S+\.parquet)` \|.*\| `(neuronprof record .*)` \|$", (SAMPLES / "README.md").read_text(), re.M)
)


def test_every_trace_has_its_command_and_is_small():
    traces = sorted(SAMPLES.glob("*.parquet"))
    assert sorted(COMMANDS) == [t.name for t in traces]
    assert all(t.is_file() and t.stat().st_size <= 10**6 for t in traces)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_samples_can_be_read_and_analyzed(name):
    trace = neuronprof.load(SAMPLES / name)
    split = trace.analyze("bottlenecks")
    assert not split.empty
    assert "Step time" in str(trace.summary())


def test_the_smallest_is_made_again(tmp_path):
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    command = shlex.split(COMMANDS["mlp.parquet"])[1:]
    made = tmp_path / "mlp.parquet"
    command[command.index("-o") + 1] = str(made)
    subprocess.run([sys.executable, "-m", "neuronprof", *command], cwd=SAMPLES, check=True, capture_output=True)
    pd.testing.assert_frame_equal(pd.read_parquet(made), pd.read_parquet(SAMPLES / "mlp.parquet"))
    assert neuronprof.load(made).metadata == neuronprof.load(SAMPLES / "mlp.parquet").metadata


def test_the_slow_chip_is_seen():
    """Chip 1 holds ranks 4 to 7: the others wait for them at the all-reduces, they hardly wait at all."""
    events = neuronprof.load(SAMPLES / "gpt-slow-chip.parquet").events
    waits = events[(events["engine"] == "cc") & (events["wait_for"] == "peer")].groupby("rank")["wait_ns"].sum()
    waits = waits.reindex(range(8), fill_value=0)
    assert waits.loc[:3].min() > 10 * max(1, waits.loc[4:].max())


def test_the_summary_says_whether_values_were_computed():
    lines = str(neuronprof.load(SAMPLES / "mlp.parquet").summary()).splitlines()
    # 512 x 2048 + 2048 + 2048 x 10 + 10 = 1,071,114
    assert (
        lines[1]
        == "1.07 M parameters, values not computed: losses and other numbers that the script printed mean nothing"
    )
