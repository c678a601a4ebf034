"""The advice: each rule fires on the fault that is planted for it, is silent on the clean twin, and its gain is the twin's."""

from dataclasses import replace
from importlib import resources

import picture
import pytest
from planted import PLANTED, attention, mlp, run_slower

from neuronprof.analyze.advice import memory
from neuronprof.analyze.advice.case import Case
from neuronprof.analyze.advice.walk import Advice
from neuronprof.analyze.advice.wording import WORDING
from neuronprof.analyze.walk import Whole
from neuronprof.cli import main
from neuronprof.trace.reader import open_trace

# PyTorch warns of its own look at .grad; as an error that would make the recording compute on the CPU what it only needs the shape of.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")


def found(whole):
    table = Advice().answer(whole)["advice"]
    return dict(zip(table["rule"], table["gain_ns"], strict=True))


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.rule)
def test_a_planted_fault_is_found_with_its_price(recorded, planted):
    faulty = recorded(planted.script, **planted.options)
    script, options = planted.clean
    clean = recorded(script, **options)
    gain = faulty.step.window.time_ns - clean.step.window.time_ns
    assert planted.rule not in found(clean)
    promised = found(faulty)[planted.rule]
    if planted.careful:
        assert 0.3 * gain < promised < (1 + planted.within) * gain
    else:
        assert promised == pytest.approx(gain, rel=planted.within)


def test_hbm_of_a_chip_that_is_slow_is_found_with_its_price(recorded, tmp_path):
    clean = recorded(mlp(bf16=True, batch=256), dp=8)  # four ranks a chip
    slow = run_slower(
        clean, tmp_path / "slow.parquet", lambda rows: rows.among("engine", ["dma"]) & (rows["chip"] == 1), 8.0
    )
    faulty = Whole(open_trace(slow))
    gain = faulty.step.window.time_ns - clean.step.window.time_ns
    assert "slow-hbm" not in found(clean)
    assert found(faulty)["slow-hbm"] == pytest.approx(gain, rel=0.03)


EVEN = """
    tensor  aaaaaaaabbbb..
    cc      ............CC
    rank 1
    tensor  aaaaaaaabbbb..
    cc      ............CC
"""
UNEVEN = """
    tensor  aaaaaaaa........
    cc      ........~~~~~~CC
    rank 1
    tensor  aaaaaaaabbbbbb..
    cc      ..............CC
"""


@pytest.mark.parametrize(("drawn", "gain"), [(EVEN, None), (UNEVEN, 3)])
def test_uneven_work_is_found_with_its_price(trace, drawn, gain):
    # The ranks compute for 8 and for 14 ns, 11 on average: evenly shared out, the step is 3 ns shorter.
    reduced = {"C": {"collective": 1, "replica_group": "dp:0-1"}}
    rows = [
        row | {"id": n, "deps": [1] if row["engine"] == "cc" else []}
        for n, row in enumerate(picture.rows(drawn, reduced))
    ]
    whole = Whole(trace(rows, [picture.segment(0, 14 if gain is None else 16)]))
    assert found(whole).get("uneven-work") == gain


LATE = """
    tensor  aaaa....bbbb
    cc      ....CCCC....
"""
AHEAD = """
    tensor  aaaabbbb
    cc      CCCC....
"""


@pytest.mark.parametrize(("drawn", "gain"), [(AHEAD, None), (LATE, 4)])
def test_weights_gathered_when_they_are_needed_are_found_with_their_price(trace, drawn, gain):
    # b needs the weights that C gathers; C waits for a only where it is late, and hidden behind a it costs nothing.
    weights = {"C": {"name": "AllGather", "collective": 1, "replica_group": "dp:0-1", "phase": "forward"}}
    a, b, gather = picture.rows(drawn, weights)
    rows = [a | {"id": 0}, gather | {"id": 1, "deps": [1] if gain else []}, b | {"id": 2, "deps": [1]}]
    assert found(Whole(trace(rows, [picture.segment(0, 12 if gain else 8)]))).get("exposed-weight-gather") == gain


ATTENTION_IN_JAX = """
import jax, jax.numpy as jnp

def loss(w, x):
    q, k, v = jnp.split((x @ w).reshape(2, 1024, 12, 128).transpose(0, 2, 1, 3), 3, 1)
    scores = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q, k) * 0.1, -1)
    return jnp.mean(jnp.einsum("bhqk,bhkd->bhqd", scores, v).astype(jnp.float32) ** 2)

step = jax.jit(jax.value_and_grad(loss))
for _ in range(3):
    step(jnp.ones((512, 1536), jnp.bfloat16), jnp.ones((2, 1024, 512), jnp.bfloat16))
"""
MLP_IN_JAX = """
import jax, jax.numpy as jnp

def loss(w, x):
    hidden = jnp.exp((x - x.mean(-1, keepdims=True)) @ w)
    return jnp.mean((hidden @ w).astype(jnp.float32) ** 2)

step = jax.jit(jax.value_and_grad(loss))
for _ in range(3):
    step(jnp.ones((512, 512), jnp.bfloat16), jnp.ones((2, 1024, 512), jnp.bfloat16))
"""


@pytest.mark.parametrize(
    ("script", "is_found"), [(ATTENTION_IN_JAX, True), (MLP_IN_JAX, False)], ids=["attention", "mlp"]
)
def test_attention_that_xla_took_apart_is_found(recorded, script, is_found):
    pytest.importorskip("jax", reason="needs the extra 'jax'")
    assert ("unfused-attention" in found(recorded(script))) is is_found


def test_products_that_leave_half_of_the_array_empty_are_found_with_their_price(recorded, tmp_path):
    # Heads of 64 fill 64 of 128 rows; with as many PEs in arrays of 64 rows the same script needs half the time for these products.
    text = resources.files("neuronprof.hardware").joinpath("trainium4.toml").read_text(encoding="utf-8")
    for number, old, new in (("rows", 128, 64), ("arrays", 6, 12)):
        text = text.replace(f"\n{number} = {{ value = {old},", f"\n{number} = {{ value = {new},")
    shallow = tmp_path / "shallow.toml"
    shallow.write_text(text, encoding="utf-8")
    script = attention(heads=8).replace("torch.bfloat16", "torch.float32")
    filled = recorded(script, chip=str(shallow))
    empty = recorded(script)
    assert "poor-pe-fill" not in found(filled)
    gain = empty.step.window.time_ns - filled.step.window.time_ns
    assert found(empty)["poor-pe-fill"] == pytest.approx(gain, rel=0.1)


def test_tensor_parallelism_beyond_a_host_is_found_with_its_price(recorded, tmp_path):
    # The twin has hosts of 16 chips, so that the same groups stay inside of one.
    script, host = attention(width=1024, heads=16), {"chip": "h100-80gb", "tp": 16}
    text = resources.files("neuronprof.hardware").joinpath("h100-80gb.toml").read_text(encoding="utf-8")
    joined = tmp_path / "joined.toml"
    joined.write_text(text.replace("\ndomain = { value = 8,", "\ndomain = { value = 16,"), encoding="utf-8")
    far, near = recorded(script, **host), recorded(script, **host | {"chip": str(joined)})
    assert "tensor-parallel-far" not in found(near)
    assert "tensor-parallel-far" not in found(recorded(script, **host | {"tp": 8, "dp": 2}))
    gain = far.step.window.time_ns - near.step.window.time_ns
    assert found(far)["tensor-parallel-far"] == pytest.approx(gain, rel=0.15)


def test_what_is_computed_again_for_lack_of_room_is_left_alone(recorded):
    whole = recorded(attention(), recompute="full")
    fit = whole.context.metadata["memory_fit"]
    full = replace(whole.context, metadata=whole.context.metadata | {"memory_fit": fit | {"capacity": fit["peak"] + 1}})
    case = Case(whole.step, full, whole.trace.operators)
    assert memory.RecomputeWithRoom().look(case) is None


def test_an_optimizer_is_not_shared_out_where_the_gather_takes_longer(recorded):
    script = mlp(width=256, batch=128)
    alone, shared = recorded(script, dp=8), recorded(script, dp=8, zero=1)
    assert shared.step.window.time_ns > alone.step.window.time_ns
    assert "unsharded-optimizer" not in found(alone)


def test_the_report_begins_with_what_to_change(recorded, capsys):
    path = str(recorded(mlp(then="print(loss.item())")).trace.path)
    assert main(["analyze", path, "advice"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, how = lines[lines.index("What to change first") + 1 :][:2]
    assert first.startswith("  1. ")
    assert "less" in first
    assert "torch" not in how  # .item() is said without it
    assert any(line.startswith("  1. host-sync: 97.5 us a step less") for line in lines)
    assert any("#page=timeline&rank=0%2F0&from=0" in line for line in lines)


def test_nothing_is_advised_for_a_trace_without_steps(trace):
    assert Advice().answer(Whole(trace([])))["advice"].empty


def test_a_jax_script_is_not_told_of_torch():
    for texts in WORDING.values():
        assert "" in texts
        for text in (texts[""], texts.get("jax", "")):
            assert not any(word in text for word in ("torch", "DistributedDataParallel", ".item()"))
