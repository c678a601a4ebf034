"""Recordings of small scripts, made once for all tests of a file."""

import subprocess
import sys

import pytest

import neuronprof
from neuronprof.analyze.walk import Whole
from neuronprof.trace.reader import open_trace


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Records a script: recorded(text, **options) is its trace; the same is recorded once."""
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    folder, made = tmp_path_factory.mktemp("recorded"), {}

    def record(script, **options):
        key = (script, repr(sorted(options.items())))
        if key not in made:
            (folder / "train.py").write_text(script)
            path = folder / f"{len(made)}.parquet"
            if "import jax" in script:
                # In a process of its own: once JAX is there, no other test can fork without its warning.
                command = [sys.executable, "-m", "neuronprof", "record", "--values", "none", "--steps", "2", "-o", path]
                subprocess.run([*command, folder / "train.py"], check=True, capture_output=True)
            else:
                neuronprof.record(folder / "train.py", output=path, values="none", steps=2, quiet=True, **options)
            made[key] = Whole(open_trace(path))
        return made[key]

    return record
