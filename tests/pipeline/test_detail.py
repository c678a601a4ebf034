"""Recording with --detail: the instructions of an operator add up to the events that stand for it otherwise."""

import numpy as np
import pandas as pd
import pytest

import neuronprof
from neuronprof.cli import main

pytest.importorskip("torch", reason="needs the extra 'torch'")

SCRIPT = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(1024), nn.Linear(1024, 4096), nn.Linear(4096, 1024)
    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))
model = nn.Sequential(Block(), Block()).to("neuron").bfloat16()
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for _ in range(3):
    x = torch.randn(2048, 1024, device="neuron", dtype=torch.bfloat16)
    model(x).float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Events of a step without what memory holds, with a detail: recorded('instruction')."""
    folder = tmp_path_factory.mktemp("detail")
    (folder / "train.py").write_text(SCRIPT)

    def record(detail, chip="trainium2"):
        path = folder / "trace.parquet"
        neuronprof.record(
            folder / "train.py", output=path, chip=chip, detail=detail, values="none", steps=1, quiet=True
        )
        events = pd.read_parquet(path)
        return events[events["kind"] != "memory"]

    return record


def sums(events, column):
    """By engine; LDWEIGHTS run behind the MATMULs, so that they are no time of their own."""
    events = events[events["name"] != "LDWEIGHTS"]
    return events.groupby("engine", observed=True)[column].sum()


def slowed(events):
    """How many times as long the MATMULs take because the PE array was cold, at half of its speed."""
    tiles = events[events["name"] == "MATMUL"]
    cold = tiles["operands"].str.extract(r"cold=([\d.]+)")[0].astype(float).fillna(0)
    return tiles["duration_ns"].sum() / (tiles["duration_ns"] / (1 + cold)).sum()


def end(events):
    return int((events["start_ts"] + events["duration_ns"]).max())


def test_instructions_add_up_to_the_operators(recorded):
    coarse, fine = recorded(""), recorded("instruction")
    for column in ("flops", "bytes"):
        pd.testing.assert_series_equal(sums(fine, column), sums(coarse, column))
    # The PE arrays: the same cycles, but for those that are lost while they are cold. The others start anew for each operator of a tile,
    # where one instruction stands for a chain otherwise.
    ratio = sums(fine, "duration_ns") / sums(coarse, "duration_ns")
    assert ratio["tensor"] / slowed(fine) == pytest.approx(1, abs=0.001)
    assert 1 < slowed(fine) < 1.05
    assert ratio["dma"] == pytest.approx(1, abs=0.001)
    assert 0.999 < ratio["vector"] < 1.05
    assert 0.999 < ratio["scalar"] < 1.05
    # Tiles flow through the engines one behind the other, so that a piece of an operator is done sooner: the step is a little shorter.
    assert 0.9 < end(fine) / end(coarse) < 1.02


def test_a_matmul_is_weights_and_moves_of_the_size_of_the_array(recorded):
    events = recorded("instruction:0.up")
    # y = x w: 2048 x 1024 x 4096 in tiles of 128 x 128 x 512, two PE arrays side by side: 16 * 8 * 8 / 2 of them forward.
    forward = events[(events["layer"] == "Sequential.0.up") & (events["phase"] == "forward")]
    tiles = forward["operands"].astype(str)
    full = tiles == "matmul_tile arrays=2 M=128 K=128 N=512 itemsize=2"
    cold = tiles.str.startswith("matmul_cold arrays=2 M=128 K=128 N=512 itemsize=2 cold=")
    counts = forward["name"].value_counts()
    assert counts["MATMUL"] == counts["LDWEIGHTS"] == 512
    # Each takes 512 cycles of 2.4 GHz, but for those of the first 3 us, 7 of twice as many; the weights are loaded in 32.
    assert (full | cold).sum() == 512
    assert set(forward[full]["duration_ns"]) == {213, 214}
    assert cold.sum() == 8
    assert set(forward[forward["name"] == "LDWEIGHTS"]["duration_ns"]) == {13, 14}
    # Nothing else is in detail.
    other = events[(events["layer"] == "Sequential.1.up") & (events["phase"] == "forward")]
    assert "LDWEIGHTS" not in set(other["name"])


def test_arrays_that_stay_idle_in_the_last_wave_are_told(recorded):
    """Trainium4 has 12 arrays a rank: where the tiles of a piece, or of K, do not divide by that, the last wave is not full."""
    coarse, fine = recorded("", "trainium4"), recorded("instruction", "trainium4")
    tiles = fine[fine["name"] == "MATMUL"]
    arrays = tiles["operands"].str.extract(r"arrays=(\d+)")[0].astype(int)
    used = np.average(arrays, weights=tiles["duration_ns"]) / 12
    ratio = sums(fine, "duration_ns")["tensor"] / sums(coarse, "duration_ns")["tensor"]
    assert ratio * used / slowed(fine) == pytest.approx(1, abs=0.03)


def test_what_a_user_can_mend(tmp_path, capsys):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    record = ["record", "--values", "none", "--steps", "1", "-o", str(tmp_path / "trace.parquet")]
    assert main([*record, "--detail", "kernel", str(script)]) == 2
    assert main([*record, "--detail", "instruction", "--chip", "h100", str(script)]) == 2
    assert main([*record, "--detail", "instruction:attention", str(script)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("neuronprof: ")]
    assert lines == [
        "neuronprof: --detail kernel cannot be read; write it like instruction or 'instruction:layers.0.*'.",
        "neuronprof: --detail is for chips whose operators are compiled to instructions; those of h100-80gb are kernels, so leave it out.",
        "neuronprof: No operator or layer is called 'attention', as --detail asks; there are Sequential, Sequential.0, Sequential.0.down, "
        "Sequential.0.norm, Sequential.0.up, Sequential.1, aten._foreach_add_, aten._fused_adamw_, aten._to_copy, aten.add, aten.addmm, "
        "aten.detach.",
    ]
    assert not (tmp_path / "trace.parquet").exists()
