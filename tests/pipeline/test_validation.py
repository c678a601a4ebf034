"""Measured steps: read, predicted, scored."""

from pathlib import Path

import pytest

from neuronprof.errors import NeuronprofError
from neuronprof.hardware.load import load_chip
from neuronprof.pipeline.validation.predicted import Predictor, layout_of, shortened
from neuronprof.pipeline.validation.rows import Row, Unreadable, read_rows
from neuronprof.pipeline.validation.run import validate
from neuronprof.pipeline.validation.scores import Outcome, scored

COLUMNS = (
    "dataset,chip,n_chips,model,layers,hidden,ffn_hidden,heads,kv_heads,vocab,seq_len,tp,pp,vp,cp,dp,sharding,micro_batch,global_batch,"
    "precision,recompute,sequence_parallel,step_time_s,constant_mfu_s"
)
GPT = "d,a100-80gb,4,GPT-toy,12,256,1024,4,4,512,128,2,2,1,1,1,none,2,16,fp16,full,no,1.0,1.2"
LLAMA = "d,h100,4,Llama-toy,4,256,704,8,4,512,128,1,1,1,1,4,fsdp,1,8,bf16,not stated,no,2.0,"


def rows_file(folder: Path, *lines: str) -> Path:
    path = folder / "rows.csv"
    path.write_text("\n".join([COLUMNS, *lines]) + "\n")
    return path


def test_rows_are_read_whatever_is_missing(tmp_path: Path) -> None:
    gpt, llama, bad = read_rows(rows_file(tmp_path, GPT, LLAMA, GPT.replace("a100-80gb,4", "a100-80gb,x")))
    assert isinstance(gpt, Row)
    assert isinstance(llama, Row)
    assert (gpt.zero, gpt.recompute, gpt.dtype, gpt.yardsticks) == (0, "full", "float16", {"constant_mfu_s": 1.2})
    assert (llama.zero, llama.recompute, llama.dtype, llama.yardsticks) == (3, "", "bfloat16", {})
    assert bad == Unreadable(3, "d", "GPT-toy", 1.0, "n_chips is 'x', but must be a whole number above zero.")


def test_a_column_says_that_gradients_were_summed_in_fp32(tmp_path: Path) -> None:
    # Four replicas of the toy Llama, each with the whole model: twice the bytes to reduce take longer.
    path = tmp_path / "rows.csv"
    llama = LLAMA.replace("fsdp", "none")
    path.write_text("\n".join([COLUMNS + ",gradients", f"{llama},", f"{llama},fp32", f"{llama},int8"]) + "\n")
    narrow, wide, wrong = validate(path, workers=1)
    assert narrow.predicted_s is not None
    assert wide.predicted_s is not None
    assert wide.predicted_s > narrow.predicted_s
    assert wrong.reason == "gradients is 'int8', but must be fp32, bf16 or fp16, or empty."


def test_a_mixture_of_experts_is_one(tmp_path: Path) -> None:
    # Of eight experts each token takes two, as the name says, or as many as the columns do; four ranks with two experts each.
    dense = LLAMA.replace("fsdp", "none").replace(",4,256,704,", ",4,1024,4096,")
    rows = (f"{dense},1,,", f"{dense},1,8,2", f"{dense},4,8,2", f"{dense},1,8,3", f"{dense},1,2,3")
    named = dense.replace("Llama-toy", "Mixtral-8x7B") + ",1,,"
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([COLUMNS + ",ep,experts,top_k", *rows, named]) + "\n")
    one, two, apart, three, wrong, mixtral = validate(path, workers=1)
    found = [o.predicted_s for o in (one, two, three)]
    assert found == sorted(set(found))
    assert mixtral.predicted_s == two.predicted_s
    assert apart.predicted_s is not None
    assert wrong.reason == "top_k is 3, but a token cannot take more than the 2 experts."


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    with pytest.raises(NeuronprofError, match="no column 'chip'"):
        read_rows(tmp_path / "no.csv")
    with pytest.raises(NeuronprofError, match="There is no file"):
        read_rows(tmp_path / "none.csv")


def test_every_row_gets_a_time_or_a_reason(tmp_path: Path) -> None:
    wrong = GPT.replace("a100-80gb,4", "a100-80gb,5")
    found = validate(rows_file(tmp_path, GPT, LLAMA, wrong, GPT.replace("a100-80gb", "z1")))
    assert [o.number for o in found] == [1, 2, 3, 4]
    assert all(o.predicted_s and 1e-4 < o.predicted_s < 1 for o in found[:2])
    assert found[1].recompute == "none"  # the least that fits
    assert found[2].predicted_s is None
    assert found[2].reason == "tp x pp x cp x dp are 4 ranks, but 5 chips have 5"
    assert "no chip 'z1'" in found[3].reason


def test_many_layers_are_extended_from_few(tmp_path: Path) -> None:
    assert shortened(96, 24) == ((1, 1, 1), (2, 2, 2), 3.0)
    assert shortened(126, 64) == ((1, 2, 1), (1, 2, 1), 0.0)
    assert shortened(32, 1) == ((4,), (8,), 7.0)
    (row,) = read_rows(
        rows_file(tmp_path, GPT.replace("4,GPT-toy,12", "8,GPT-toy,40").replace(",2,2,1,1,1,", ",2,4,1,1,1,"))
    )
    assert isinstance(row, Row)
    predictor = Predictor()
    chip = load_chip(row.chip)
    exact = predictor._simulated(row, chip, layout_of(row, chip), "full", (10, 10, 10, 10))
    assert predictor.predict(row).predicted_s == pytest.approx(exact[0], rel=0.01)


def test_scores() -> None:
    def made(number: int, measured: float, predicted: float | None, yardstick: float) -> Outcome:
        return Outcome(number, "d", "m", 8, measured, predicted, "", {"constant_mfu_s": yardstick})

    (score,) = scored([made(1, 1.0, 1.1, 1.5), made(2, 2.0, 1.8, 2.0), made(3, 4.0, None, 4.0)])
    # 10 %, -10 % and one that is missing, which counts as 100 %
    assert (score.rows, score.predicted, score.worst, score.rank_correlation) == (3, 2, 3, 1.0)
    assert score.mape == pytest.approx(0.4)
    assert score.median == pytest.approx(0.1)
    assert score.bias == pytest.approx(0.0)
    assert score.yardsticks == {"constant_mfu_s": pytest.approx(0.5 / 3)}
