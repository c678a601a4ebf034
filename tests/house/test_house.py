"""The rules of the house, checked on its own files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from neuronprof.cli import VERBS

ROOT = Path(__file__).parents[2]
PACKAGE = sorted((ROOT / "neuronprof").rglob("*.py"))
HEAVY = ("numpy", "pandas", "pyarrow", "bokeh", "torch", "jax", "dask")


def functions(path):
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= 400
    assert {f.name: f.end_lineno - f.lineno + 1 for f in functions(path) if f.end_lineno - f.lineno + 1 > 50} == {}


def test_no_drawer_for_odds_and_ends():
    assert [p.name for p in PACKAGE if p.stem in ("utils", "common", "helpers", "misc")] == []


_HASH = {0x7FEB352D, 0x846CA68B, 0x9E3779B9, 0x85EBCA6B, 0xFFFFFFFF, 1 << 15}


@pytest.mark.parametrize("path", sorted((ROOT / "neuronprof" / "simulate").glob("*.py")), ids=lambda p: p.name)
def test_numbers_of_the_machine_stand_in_the_hardware_files(path):
    """A literal above 64 in the simulator is a clock, a bandwidth or a size that has no source."""
    scales = {1000, 1e12, 500}  # units of time
    constants = (n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant))
    found = [v for v in constants if isinstance(v, int | float) and not isinstance(v, bool)]
    allowed = {
        "cost.py": {256, 512, 2048, 4096},  # the sizes that name the fields of hardware.spec.Dma
        "lanes.py": {256},  # lanes of a block
        "noise.py": _HASH,
        "kernels.py": _HASH,
    }
    assert [v for v in found if abs(v) > 64 and v not in scales and v not in allowed.get(path.name, set())] == []


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_quick(verb):
    """The help pages load nothing heavy."""
    code = f"import sys; from neuronprof.cli import main\ntry: main({[v for v in (verb, '--help') if v]!r})\nexcept SystemExit: pass\n"
    code += f"print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "loaded: []"
    assert "usage: neuronprof" in out


def test_every_verb_has_its_module():
    modules = {p.stem for p in (ROOT / "neuronprof" / "cli").glob("*.py")} - {"__init__"}
    assert modules == {verb.replace("-", "_") for verb in VERBS}


def test_nothing_names_this_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"/root/|/tmp/dev|/work/|https?://[^ ]*(?:pypi|npmjs|debian)\.org")
    texts = {
        f: (ROOT / f).read_text(errors="ignore")
        for f in tracked
        if Path(f).suffix in (".py", ".md", ".toml", ".js", ".ipynb", "")
    }
    assert [f for f, text in texts.items() if f != "tests/house/test_house.py" and pattern.search(text)] == []
