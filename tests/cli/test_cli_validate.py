"""neuronprof validate: the tables, the page, the figures for machines."""

import json
from pathlib import Path

import pytest

from neuronprof.cli import main

ROWS = """dataset,chip,n_chips,model,layers,hidden,heads,vocab,seq_len,tp,global_batch,precision,recompute,step_time_s,constant_mfu_s
small,a100-80gb,2,GPT-toy,2,256,4,512,128,2,4,fp16,none,0.001,0.002
small,a100-80gb,3,GPT-toy,2,256,4,512,128,2,4,fp16,none,0.001,0.001
"""


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS)
    return str(path)


def test_figures_for_machines(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", rows, "--json", "--workers", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["rows"]
    assert {"dataset", "model", "measured_s", "predicted_s", "reason"} <= set(first)
    assert 0 < first["predicted_s"] < 1
    assert second["predicted_s"] is None
    assert "2 ranks" in second["reason"]
    (dataset,) = found["datasets"]
    assert (dataset["rows"], dataset["predicted"]) == (2, 1)
    assert dataset["yardsticks"] == {"constant_mfu_s": pytest.approx(0.5)}  # 100 % and nothing


def test_tables_and_page(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert main(["validate", rows, "-o", str(page), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == [
        "row", "dataset", "model", "chips", "recompute", "measured", "predicted", "error",
    ]  # fmt: skip
    assert "row 2 (GPT-toy) was not predicted: tp x pp x cp x dp are 2 ranks, but 3 chips have 3" in printed
    assert page.read_text().count("<tr>") == 2 + 3  # by dataset and by row, each with its heading


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path / "none.csv")]) == 2
    assert main(["validate", "rows.csv", "-o", str(tmp_path / "no" / "r.html")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [e.split()[0] for e in errors] == ["neuronprof:", "neuronprof:"]
