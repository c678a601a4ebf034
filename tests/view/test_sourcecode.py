"""Code beside the details of an event: read where it is expected, and nowhere else."""

import os

import picture
import pytest

from neuronprof.view import sourcecode

SCRIPT = "".join(f"line {n}\n" for n in range(1, 21))


@pytest.fixture
def opened(trace, tmp_path):
    """A trace in a folder with train.py, which is older."""
    found = trace(picture.rows("tensor aa"), script="train.py")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    os.utime(script, (1e9, 1e9))
    return found


def test_the_lines_around_a_source_line(opened):
    assert sourcecode.excerpt(opened, "train.py:6") == {
        "first": 2, "line": 6, "lines": [f"line {n}" for n in range(2, 11)], "note": "",
    }  # fmt: skip
    assert sourcecode.excerpt(opened, "train.py:20")["lines"][-1] == "line 20"


def test_a_script_that_changed_or_went_is_told(opened, tmp_path):
    assert (
        sourcecode.excerpt(opened, "train.py:21")["note"]
        == "train.py has only 20 lines now: it changed since the recording."
    )
    os.utime(tmp_path / "train.py", (4e9, 4e9))
    found = sourcecode.excerpt(opened, "train.py:6")
    assert found["note"] == "train.py is newer than the trace: it may have changed since the recording."
    assert len(found["lines"]) == 9
    assert sourcecode.excerpt(opened, "gone.py:1")["note"].startswith("gone.py is not here")
    assert sourcecode.excerpt(opened, "no line") == {"first": 0, "line": 0, "lines": [], "note": ""}


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.py", "secret.txt"])
def test_a_trace_cannot_have_other_files_shown(opened, tmp_path, name):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path.parent / "secret.py").write_text("secret")
    assert sourcecode.excerpt(opened, f"{name}:1")["lines"] == []
