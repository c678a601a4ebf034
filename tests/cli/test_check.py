"""The gate: limits, a baseline, and what it says to those who run it."""

from xml.etree import ElementTree

import picture
import pytest

from neuronprof.cli import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


@pytest.fixture
def trace(tmp_path):
    """A step of 10 ms: 5 ms tensor, 2 ms exposed communication, 3 ms idle; MFU 1e9 FLOP / (10 ms * 1 TFLOP/s) = 10 %."""
    events = picture.rows(
        "tensor aaaaa.....\ncc     .....CC...", {"a": {"dtype": "bfloat16", "flops": 10}}, scale=1_000_000
    )
    return str(picture.write(tmp_path / "trace.parquet", events, [picture.segment(0, 10_000_000, model_flops=10**9)]))


def test_limits_that_are_kept(trace, capsys):
    assert (
        main(["check", trace, "--max", "step_time=10ms", "--max", "exposed_communication=20%", "--min", "mfu=0.1"]) == 0
    )
    assert capsys.readouterr().out == f"{trace} keeps all 3 limits\n"


def test_each_violation_is_one_line(trace, capsys):
    assert (
        main(["check", trace, "--max", "step_time=9ms", "--max", "idle=0.2", "--min", "mfu=40%", "--min", "mbu=1%"])
        == 1
    )
    assert capsys.readouterr().out.splitlines() == [
        "step_time 10 ms is above 9 ms",
        "idle 30.0 % is above 20.0 %",
        "mfu 10.0 % is below 40.0 %",
        "mbu is not known from this trace, the limit is mbu >= 1.0 %",
    ]


def test_limits_of_the_project_and_options_that_win_over_them(trace, tmp_path, capsys):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.neuronprof.check]\nmax = { step_time = "9ms", idle = 0.5 }\nmin = { mfu = 0.05 }\n'
    )
    assert main(["check", trace]) == 1
    assert capsys.readouterr().out == "step_time 10 ms is above 9 ms\n"
    assert main(["check", trace, "--max", "step_time=11ms"]) == 0


def test_a_baseline(trace, tmp_path, capsys):
    """The baseline's step takes 9.8 ms: 10 ms is 2 % more."""
    events = picture.rows("tensor aaaaa", scale=1_000_000)
    base = str(picture.write(tmp_path / "base.parquet", events, [picture.segment(0, 9_800_000)]))
    assert main(["check", trace, "--baseline", base]) == 0
    assert main(["check", trace, "--baseline", base, "--tolerance", "1%"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"step_time 10 ms is above 9.9 ms, 1.0 % off {base}"


def test_junit_and_github(trace, tmp_path, capsys):
    assert main(["check", trace, "--max", "step_time=9ms", "--max", "idle=1", "--junit", "out.xml", "--github"]) == 1
    assert capsys.readouterr().out == f"::error title=neuronprof check::{trace}: step_time 10 ms is above 9 ms\n"
    suite = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert suite.attrib == {"name": "neuronprof check", "tests": "2", "failures": "1"}
    assert [(case.get("name"), [f.get("message") for f in case]) for case in suite] == [
        ("step_time <= 9 ms", ["step_time 10 ms is above 9 ms"]),
        ("idle <= 100.0 %", []),
    ]


def test_a_percent_sign_in_an_annotation_of_github_is_written_out(trace, capsys):
    assert main(["check", trace, "--min", "idle=100%", "--github"]) == 1
    assert capsys.readouterr().out.endswith(" %25 is below 100.0 %25\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "There is no limit to check"),
        (["--max", "speed=3"], "There is no metric 'speed'"),
        (["--max", "step_time"], "--max step_time cannot be read"),
        (["--max", "step_time=12"], "'12' is not a duration"),
        (["--max", "idle=1", "--junit", "no/such/folder.xml"], "Cannot write no/such/folder.xml"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(trace, capsys, arguments, sentence):
    assert main(["check", trace, *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_project_file_that_cannot_be_read(trace, tmp_path, capsys):
    (tmp_path / "pyproject.toml").write_text("[tool")
    assert main(["check", trace]) == 2
    assert "pyproject.toml cannot be read" in capsys.readouterr().err


def test_a_misspelt_table_of_limits_is_refused(trace, tmp_path, capsys):
    (tmp_path / "pyproject.toml").write_text("[tool.neuronprof.check]\nmaximum = { idle = 0.1 }\n")
    assert main(["check", trace]) == 2
    assert "has 'maximum', which is neither max nor min" in capsys.readouterr().err


def test_limits_that_are_no_table_are_refused(trace, tmp_path, capsys):
    (tmp_path / "pyproject.toml").write_text("[tool.neuronprof]\ncheck = 3\n")
    assert main(["check", trace]) == 2
    assert "is no table; write [tool.neuronprof.check]" in capsys.readouterr().err
