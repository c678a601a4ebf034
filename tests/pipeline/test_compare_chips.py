"""The same script on several machines: the layout that fits each, time and cost beside each other."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from neuronprof import pipeline
from neuronprof.cli import main
from neuronprof.distribute.layout import Layout
from neuronprof.distribute.styles import Style
from neuronprof.hardware.load import load_chip
from neuronprof.pipeline import compare, sweep
from neuronprof.pipeline.grid import Grid
from neuronprof.pipeline.sweep import Machines

SCRIPT = Path(__file__).parents[2] / "sample_traces" / "train_llm.py"
ARGUMENTS = ("--model", "tiny", "--batch", "2", "--sequence", "256", "--steps", "1")


@pytest.fixture(scope="module")
def step():
    options = pipeline.Options(values="none", steps=1, warmup=0)
    return sweep.step_of(pipeline.capture(SCRIPT, ARGUMENTS, options).recording)


def machines(name, count, price=None, hbm=None):
    chip = load_chip(name)
    if hbm:
        chip = replace(chip, package=replace(chip.package, hbm_capacity=hbm))
    return Machines(chip, int(chip.package.lnc), count, chip.price.hour if price is None else price)


def test_each_machine_has_the_same_batch_and_costs_its_price(step):
    # 2 chips of 4 ranks take 2 samples a rank: 16 samples; 2 GPUs take them in 4 micro-batches of 2 samples each.
    table = compare.compare(step, [machines("trainium2", 2), machines("h100", 2, price=3.6)])
    assert table["chip"].tolist() == ["trainium2", "h100-80gb"]
    assert table["instance"].tolist() == ["trn2", "p5"]
    assert table["global_batch"].tolist() == [16, 16]
    assert table[["dp", "accumulate"]].values.tolist() == [[8, 1], [2, 4]]
    assert table["price_provenance"].tolist() == ["assumed", "given"]
    h100 = table.iloc[1]
    # 2 GPUs at 3.60 USD an hour are 0.002 USD a second; a step has 16 samples of 256 tokens.
    assert h100["cost_per_step"] == pytest.approx(h100["step_time_ns"] / 1e9 * 0.002)
    assert h100["cost_per_million_tokens"] == pytest.approx(h100["cost_per_step"] / (16 * 256) * 1e6)


def test_every_machine_runs_the_step_in_the_style_asked_for(step):
    asked = [machines("trainium2", 1)]
    plain, again = (compare.compare(step, asked, Grid(), style=style).iloc[0] for style in (None, Style("full")))
    assert (plain["recompute"], again["recompute"]) == ("none", "full")
    assert again["step_time_ns"] > plain["step_time_ns"]


def test_layouts_spread_the_model_no_further_than_it_must_be(step):
    # All of the state fits a rank of Trainium2: the first choices are data parallelism, with
    # the optimizer state shared out or not.
    assert compare.likely(step, machines("trainium2", 2), 16)[:2] == [Layout(dp=8, zero=1), Layout(dp=8)]
    # With room for half of it, no layout leaves all of it on every rank.
    state = compare._state(step, Layout())
    small = machines("trainium2", 2, hbm=4 * state / 2)
    found = compare.likely(step, small, 16)
    assert found
    assert all(compare._state(step, layout) <= 0.9 * state / 2 for layout in found)


def test_the_verb_prints_what_json_holds(capsys):
    options = ["compare-chips", "--chips", "trainium2,p5", "--count", "1", "--values", "none"]
    assert main([*options, "--json", str(SCRIPT), *ARGUMENTS]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["machines"]
    assert [(r["chip"], r["status"]) for r in rows] == [("trainium2", "fits"), ("h100-80gb", "fits")]
    assert main([*options, str(SCRIPT), *ARGUMENTS]) == 0
    shown = capsys.readouterr().out
    assert "trainium2 (trn2)" in shown
    assert "h100-80gb (p5)" in shown
    faster = min(rows, key=lambda r: r["step_time_ns"])
    assert f"fastest: {faster['chip']} ({faster['instance']})" in shown


def test_a_job_of_so_many_tokens_beside_a_service_that_bills_them(capsys):
    options = ["compare-chips", "--chips", "trainium2,p5", "--count", "1", "--values", "none"]
    options += ["--tokens", "2T", "--service", "bedrock=1.5"]
    assert main([*options, "--json", str(SCRIPT), *ARGUMENTS]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for row in found["machines"]:
        assert row["job_seconds"] == pytest.approx(2e12 / row["tokens_per_second"])
        # One chip, by the hour.
        assert row["job_cost"] == pytest.approx(row["job_seconds"] / 3600 * row["price_hour"])
    assert found["services"] == [{"service": "bedrock", "cost_per_million_tokens": 1.5, "job_cost": 3_000_000}]
    assert main([*options, str(SCRIPT), *ARGUMENTS]) == 0
    shown = capsys.readouterr().out
    assert "the job 2 T tokens" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("bedrock")] == [
        ["bedrock", "-", "-", "-", "-", "-", "1.5", "-", "3,000,000", "-"]
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tokens", "many"), "'many' is not a number; write it like 300M, 15T or 1e12."),
        (("--service", "bedrock"), "--service bedrock cannot be read; write it like bedrock=1.49."),
        (("--chips", "trainium2,trainium9"), "There is no chip 'trainium9'"),
        (("--price", "h100=cheap"), "--price h100=cheap cannot be read; write it like h100=6.88."),
        (
            ("--chips", "trainium2", "--price", "h100=3"),
            "--price names h100-80gb, which is not among --chips trainium2.",
        ),
        (("--count", "0"), "--count 0 is no machine; give at least 1."),
    ],
)
def test_mistakes_are_one_sentence(options, said, capsys):
    assert main(["compare-chips", *options, str(SCRIPT)]) == 2
    assert said in capsys.readouterr().err


def test_a_script_without_tokens_has_no_job_of_so_many(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "compare", lambda *_args, **_options: pytest.fail("simulated for nothing"))
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\nm = torch.nn.Linear(8, 8)\no = torch.optim.SGD(m.parameters())\nm(torch.ones(2, 8)).sum().backward()\no.step()\n"
    )
    assert main(["compare-chips", "--tokens", "1T", "--chips", "trainium2", "--count", "1", str(script)]) == 2
    assert "trains on no tokens; leave the option out." in capsys.readouterr().err
