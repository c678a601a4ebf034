import pytest

from neuronprof.cli import main


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--collective-algorithm", "star"], "There is no collective algorithm 'star'; choose one of ring, kangaring, mesh"),
        (["--oversubscription", "0.5"], "An oversubscription of 0.5 is not 1 or more"),
        (["--as-rank", "3"], "say over how many ranks with --world-size"),
        (["--as-rank", "9", "--world-size", "8"], "rank 9 of 8 is none of them"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_is_refused_before_the_script_runs(option, said, tmp_path, capsys):
    script = tmp_path / "train.py"
    script.write_text("print('ran')\n")
    assert main(["record", *option, "-o", str(tmp_path / "trace.parquet"), str(script)]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert "ran" not in printed.out
    assert list(tmp_path.iterdir()) == [script]
