"""Loops are compiled once, and on a first run ahead: in another process, while the script is captured."""

import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from neuronprof import loops
from neuronprof.loops import loop
from neuronprof.pipeline import ahead


@pytest.fixture(autouse=True)
def nothing_runs_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loops, "_elsewhere", [])
    monkeypatch.setattr(loops, "_done", set())
    yield
    loops._leave()


def _doubled(values: np.ndarray) -> float:
    return values.sum() * 2


def test_a_loop_converts_what_its_signature_does_not_have():
    doubled = loop("float64(float64[::1])")(_doubled)

    assert doubled(np.array([1.0, 2.0])) == 6
    assert len(doubled._compiled.signatures) == 1


def test_a_loop_waits_for_its_own_turn_and_for_no_later_one():
    other = [sys.executable, "-c", f"import time; print('{__name__}._doubled', flush=True); time.sleep(60)"]
    loops.expect(subprocess.Popen(other, stdout=subprocess.PIPE, text=True))

    begun = time.monotonic()
    loop("float64(float64[::1])")(_doubled)(np.zeros(1))

    assert time.monotonic() - begun < 30


def test_a_loop_that_the_other_process_never_made_is_compiled_here():
    other = [sys.executable, "-c", "raise SystemExit(1)"]
    loops.expect(subprocess.Popen(other, stdout=subprocess.PIPE, text=True))

    assert loop("float64(float64[::1])")(_doubled)(np.ones(3)) == 6
    assert not loops.expected()


def test_the_process_makes_every_loop_that_a_recording_calls(tmp_path: Path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", ahead.__name__]

    made = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()

    modules = [f"neuronprof.{name}" for name in ahead._MODULES]
    for module in modules:
        import_module(module)
    assert set(made) == {one.name for one in loops.known if one.name.rpartition(".")[0] in modules}
    assert {"neuronprof.simulate.kernels.walk", "neuronprof.analyze.replay.run"} <= set(made)
    kept = {path.name.split("-")[0] for path in tmp_path.rglob("*.nbi")}
    assert kept == {".".join(name.split(".")[-2:]) for name in made}


def test_nothing_is_compiled_before_the_script_runs():
    code = (
        "import neuronprof.cli.record, neuronprof.pipeline.machine, neuronprof.pipeline.sweep; from neuronprof import loops; "
        "print(sum(bool(one._compiled.signatures) for one in loops.known), len(loops.known))"
    )

    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()

    assert said[0] == "0"
    assert int(said[1]) > 5
