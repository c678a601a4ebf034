"""What the README tells a stranger to do works."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neuronprof.cli import VERBS, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"```sh\n(.*?)\n```", README, re.S)


def test_the_first_screen_has_a_picture_and_two_commands():
    screen = README[: README.index("## What it does")]
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", screen)
    assert (ROOT / picture).stat().st_size > 10_000
    assert [c for c in COMMANDS if c in screen] == COMMANDS
    assert len(COMMANDS) == 2


def test_the_main_job_runs(tmp_path):
    """The part of the first command after the installation, in a copy of the folder that it names."""
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    shutil.copytree(ROOT / "sample_traces", tmp_path / "sample_traces")
    steps = [shlex.split(s) for s in COMMANDS[0].split(" && ")]
    jobs = [s[1:] for s in steps if s[0] == "neuronprof"]
    assert [j[0] for j in jobs] == ["record", "view"]
    jobs[1].append("--no-browser")
    out = ""
    for job in jobs:
        run = subprocess.run(
            [sys.executable, "-m", "neuronprof", *job], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        out += run.stdout
    assert "What costs most time" in out
    assert re.search(r"  3\. .* a step", out)
    assert (tmp_path / "trace.parquet").is_file()
    assert "<html" in (tmp_path / "timeline.html").read_text()[:200].lower()


def test_the_test_command_is_a_script_of_the_repository():
    shell, script = shlex.split(COMMANDS[1])
    assert shell == "bash"
    assert subprocess.run(["bash", "-n", str(ROOT / script)], check=False).returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_readme(verb):
    assert f"neuronprof {verb}" in README


def test_every_option_in_the_readme_exists(capsys):
    with pytest.raises(SystemExit):
        main(["record", "--help"])
    known = capsys.readouterr().out
    section = README[README.index("## Recording") : README.index("Steps are found")]
    assert [o for o in re.findall(r"--[a-z][a-z-]*", section) if o not in known] == []


def test_every_public_name_in_the_readme_exists():
    import neuronprof

    assert [n for n in re.findall(r"neuronprof\.([a-z]+)\(", README) if not hasattr(neuronprof, n)] == []
