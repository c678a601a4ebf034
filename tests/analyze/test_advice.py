"""The advice: each rule fires on the fault that is planted for it, is silent on the clean twin, and its gain is the twin's."""

from dataclasses import dataclass, field

import pytest

import neuronprof
from neuronprof.analyze.advice.walk import Advice
from neuronprof.analyze.advice.wording import WORDING
from neuronprof.analyze.walk import Whole
from neuronprof.cli import main
from neuronprof.trace.reader import open_trace

HEAD = """
import torch
from torch import nn
torch.manual_seed(0)
"""
MLP = (
    HEAD
    + """
model = nn.Sequential(*[nn.Linear({width}, {width}) for _ in range({layers})]).to("neuron")
optimizer = torch.optim.{optimizer}(model.parameters(), lr=0.1)
for _ in range(3):
    x = torch.ones({batch}, {width}, device="neuron")
    with torch.autocast("neuron", dtype=torch.bfloat16, enabled={bf16}):
        loss = model(x).square().mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    {then}
"""
)


def mlp(**changes):
    return MLP.format(
        **{"width": 1024, "layers": 4, "batch": 1024, "bf16": False, "then": "", "optimizer": "SGD"} | changes
    )


@dataclass(frozen=True)
class Planted:
    """A fault and its clean twin: script and options; within: what the promised gain may be off from that of the twin's recording;
    careful: the rule may promise as little as a third of it."""

    rule: str
    script: str
    twin: str
    options: dict = field(default_factory=dict)
    cure: dict = field(default_factory=dict)
    within: float = 0.1
    careful: bool = False


ADAM = mlp(optimizer="AdamW")
PLANTED = [
    Planted("host-sync", mlp(then="print(loss.item())"), mlp()),
    Planted("float32-products", mlp(batch=256), mlp(batch=256, bf16=True)),
    Planted("unsharded-optimizer", ADAM, ADAM, {"dp": 8}, {"zero": 1}, careful=True),
    Planted("slow-chip", mlp(), mlp(), {"dp": 8, "slow_chips": {1: 1.5}}, {"slow_chips": {}}, within=0.01),
    Planted("throttled-core", mlp(), mlp(), {"dp": 8, "throttled": {5: 2.0}}, {"throttled": {}}, within=0.01),
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Records a script: recorded(text, **options) is its trace; the same is recorded once."""
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    folder, made = tmp_path_factory.mktemp("advice"), {}

    def record(script, **options):
        key = (script, repr(sorted(options.items())))
        if key not in made:
            (folder / "train.py").write_text(script)
            path = folder / f"{len(made)}.parquet"
            neuronprof.record(folder / "train.py", output=path, values="none", steps=2, quiet=True, **options)
            made[key] = Whole(open_trace(path))
        return made[key]

    return record


def found(whole):
    table = Advice().answer(whole)["advice"]
    return dict(zip(table["rule"], table["gain_ns"], strict=True))


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.rule)
def test_a_planted_fault_is_found_with_its_price(recorded, planted):
    faulty = recorded(planted.script, **planted.options)
    clean = recorded(planted.twin, **planted.options | planted.cure)
    gain = faulty.step.window.time_ns - clean.step.window.time_ns
    assert planted.rule not in found(clean)
    promised = found(faulty)[planted.rule]
    if planted.careful:
        assert 0.3 * gain < promised < (1 + planted.within) * gain
    else:
        assert promised == pytest.approx(gain, rel=planted.within)


def test_an_optimizer_is_not_shared_out_where_the_gather_takes_longer(recorded):
    script = mlp(width=256, batch=128)
    alone, shared = recorded(script, dp=8), recorded(script, dp=8, zero=1)
    assert shared.step.window.time_ns > alone.step.window.time_ns
    assert "unsharded-optimizer" not in found(alone)


def test_the_report_begins_with_what_to_change(recorded, capsys):
    path = str(recorded(mlp(then="print(loss.item())")).trace.path)
    assert main(["analyze", path, "advice"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "What to change first"
    assert lines[4].startswith("  1. ")
    assert "less" in lines[4]
    assert "torch" not in lines[5]  # .item() is said without it
    assert any(line.startswith("  1. host-sync: 97.5 us a step less") for line in lines)
    assert any("#page=timeline&rank=0%2F0&from=0" in line for line in lines)


def test_nothing_is_advised_for_a_trace_without_steps(trace):
    assert Advice().answer(Whole(trace([])))["advice"].empty


def test_a_jax_script_is_not_told_of_torch():
    for texts in WORDING.values():
        assert "" in texts
        for text in (texts[""], texts.get("jax", "")):
            assert not any(word in text for word in ("torch", "DistributedDataParallel", ".item()"))
