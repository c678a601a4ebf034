"""JAX scripts as users write them: batches from numpy, values read, steps and regions by hand, pmap, Flax and Optax."""

import subprocess
import sys

import pytest

import neuronprof

pytest.importorskip("jax", reason="needs the extra 'jax'")

BATCH, IN, OUT = 64, 128, 32
HEAD = f"""
import functools
import jax, jax.numpy as jnp, numpy as np
import neuronprof

def loss(w, x, y):
    return ((x @ w - y) ** 2).mean()

def update(w, x, y):
    value, g = jax.value_and_grad(loss)(w, x, y)
    return w - 0.1 * g, value

def batch(*leading):
    return np.ones((*leading, {BATCH}, {IN}), np.float32), np.ones((*leading, {BATCH}, {OUT}), np.float32)

w = jnp.zeros(({IN}, {OUT}))
"""


def record(folder, script, *options):
    """Runs neuronprof record in a process of its own; returns what it printed and the trace."""
    (folder / "train.py").write_text(HEAD + script)
    command = [sys.executable, "-m", "neuronprof", "record", *options, "-o", str(folder / "t.parquet"), "train.py"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert run.returncode == 0, run.stderr
    return run.stdout, neuronprof.load(folder / "t.parquet")


def line_of(script, text):
    """file:line of the line that has the text, as sources end."""
    lines = (HEAD + script).splitlines()
    return f"train.py:{next(n for n, line in enumerate(lines, 1) if text in line)}"


READS = """
step = jax.jit(update)
for _ in range(4):
    w, value = step(w, *batch())
    print(float(value))
    first = value.item()  # is on the host already
    weights = jax.device_get(w)
"""


@pytest.mark.parametrize("values", ["real", "none"])
def test_batches_go_up_and_values_come_down_once_each(tmp_path, values):
    _, trace = record(tmp_path, READS, "--steps", "1", "--values", values)

    moved = trace.operators[trace.operators["phase"] == "other"]
    assert [(o.op_name, o.bytes, o.source.rpartition("/")[2]) for o in moved.itertuples()] == [
        ("neuronprof.h2d", 4 * BATCH * IN, line_of(READS, "step(w")),
        ("neuronprof.h2d", 4 * BATCH * OUT, line_of(READS, "step(w")),
        ("aten._local_scalar_dense", 4, line_of(READS, "float(value)")),
        ("neuronprof.d2h", 4 * IN * OUT, line_of(READS, "device_get")),
    ]
    at_peak = trace.metadata["memory_fit"]["at_peak"]
    assert at_peak["inputs"] == 4 * BATCH * (IN + OUT)  # a batch of one step: the one before is gone


def test_steps_and_regions_by_hand(tmp_path):
    script = """
step = jax.jit(update)
for _ in range(3):
    with neuronprof.region("epoch"):
        for _ in range(2):
            with neuronprof.region("batch"):
                w, value = step(w, *batch())
    neuronprof.step()
"""
    _, trace = record(tmp_path, script, "--steps", "1", "--values", "none")

    # A step is what lies between two marks: two calls, each of which would be one without them. Forward and the weight's gradient.
    assert [s["model_flops"] for s in trace.metadata["segments"]] == [2 * 2 * 2 * BATCH * IN * OUT]
    assert set(trace.operators["region"]) == {"epoch/batch"}


def test_pmap_runs_on_every_device_and_reduces_the_gradients(tmp_path):
    script = """
@functools.partial(jax.pmap, axis_name="replica")
def step(w, x, y):
    value, g = jax.value_and_grad(loss)(w, x, y)
    return w - 0.1 * jax.lax.pmean(g, "replica"), value

n = jax.local_device_count()
w = jnp.broadcast_to(w, (n, *w.shape))
for _ in range(3):
    w, value = step(w, *batch(n))
"""
    _, trace = record(tmp_path, script, "--steps", "2", "--values", "none", "--world-size", "4")

    assert trace.metadata["mesh"] == {"replica": 4}
    # The first call finds the weights on one device, the others on four: it is the same step all the same, skipped as warm-up.
    assert [s["model_flops"] for s in trace.metadata["segments"]] == [2 * 2 * BATCH * IN * OUT] * 2
    events = trace.events
    first = events[(events["rank"] == 0) & (events["step"] == 0)]
    assert first[first["engine"] == "cc"][["name", "bytes"]].values.tolist() == [["AllReduce", 4 * IN * OUT]]
    assert first[first["op_name"] == "neuronprof.h2d"]["bytes"].tolist() == [4 * BATCH * IN, 4 * BATCH * OUT]


BLOCK = """
step = jax.jit(update)
for _ in range(2):
    w, value = step(w, *batch())  # is not recorded, and compiled before the block begins
with neuronprof.recording("t.parquet", values="real", quiet=True):
    for _ in range(3):
        w, value = step(w, *batch())
w, value = step(w, *batch())
print("loss", float(value))
"""


def test_a_block_records_what_runs_inside(tmp_path):
    (tmp_path / "train.py").write_text(HEAD + BLOCK)
    run = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=False, cwd=tmp_path)

    assert run.returncode == 0, run.stderr
    trace = neuronprof.load(tmp_path / "t.parquet")
    # Three steps, of which the first is warm-up.
    assert [s["model_flops"] for s in trace.metadata["segments"]] == [2 * 2 * BATCH * IN * OUT] * 2
    assert {source.rpartition("/")[2] for source in trace.operators["source"]} >= {line_of(BLOCK, "(x @ w - y)")}


def test_names_of_accelerators_mean_the_simulated_device(tmp_path):
    script = """
jax.config.update("jax_platforms", "neuron")
print(jax.default_backend(), len(jax.devices("neuron")), jax.device_count("gpu"), len(jax.local_devices(backend="tpu")))
w = jax.device_put(w, jax.devices("neuron")[0])
print(jax.jit(update, backend="neuron")(w, *batch())[1])
"""
    printed, _ = record(tmp_path, script, "--values", "real")

    assert printed.splitlines()[:2] == ["neuron 1 1 1", "1.0"]


def test_flax_and_optax_against_pencil_and_paper(tmp_path):
    hidden = 256
    script = f"""
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense({OUT}, name="outer")(nn.relu(nn.Dense({hidden}, name="inner")(x)))

net = Net()
x, y = batch()
state = TrainState.create(apply_fn=net.apply, params=net.init(jax.random.PRNGKey(0), x), tx=optax.adam(1e-3))

@jax.jit
def step(state, x, y):
    value, g = jax.value_and_grad(lambda p: ((state.apply_fn(p, x) - y) ** 2).mean())(state.params)
    return state.apply_gradients(grads=g), value

for _ in range(3):
    state, value = step(state, x, y)
"""
    _, trace = record(tmp_path, script, "--steps", "1", "--values", "none")

    # Forward 2 B (I H + H O); backward the same for the weights, and 2 B H O for what the hidden layer gives.
    by_hand = 2 * BATCH * (2 * (IN * hidden + hidden * OUT) + hidden * OUT)
    assert [s["model_flops"] for s in trace.metadata["segments"]] == [by_hand]
    parameters = IN * hidden + hidden + hidden * OUT + OUT
    assert trace.metadata["parameters"] == parameters
    # Nothing is donated: old weights and both moments of Adam stand in HBM beside the new ones; its count and the state's are 4 bytes each.
    at_peak = trace.metadata["memory_fit"]["at_peak"]
    assert at_peak["weights"] == 2 * 4 * parameters
    assert at_peak["optimizer_state"] == 2 * 2 * 4 * parameters + 2 * 4
    products = trace.operators[trace.operators["op_name"] == "aten.mm"]
    assert set(products["layer"]) == {"Net.inner", "Net.outer"}
    assert set(trace.operators["phase"]) == {"other", "forward", "backward", "optimizer"}
