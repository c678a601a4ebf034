"""JAX scripts: HLO as operators, and whole scripts from the command line."""

import subprocess
import sys

import pytest

import neuronprof
from neuronprof.capture.jax.hlo import parse
from neuronprof.capture.jax.opnames import place
from neuronprof.capture.jax.translate import translate
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.terms import Phase

pytest.importorskip("jax", reason="needs the extra 'jax'")

HEAD = """HloModule jit_step

FileNames
1 "/home/user/train.py"
2 "/lib/site-packages/optax/adam.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=3 end_column=18}
2 {file_name_id=2 function_name_id=1 line=80 end_line=80 column=3 end_column=18}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

"""


def operators(body, computations=""):
    """(name, input shapes, output shapes) of a module's operators that compute, and the module."""
    module = parse(f"{HEAD}{computations}\nENTRY main {{\n{body}\n}}\n")
    found = translate(module, "/home/user", lambda ranks: ReplicaGroup.of("dp", ranks))
    shown = [
        (o.signature.name, [t.shape for t in o.signature.inputs], [t.shape for t in o.signature.outputs])
        for o in found.operators
        if not o.signature.view
    ]
    return shown, found


def test_a_product_with_a_batch_is_a_bmm_and_constants_are_no_operands():
    shown, found = operators(
        """  a.1 = f32[4,8,16]{2,1,0} parameter(0)
  b.2 = f32[4,16,32]{2,1,0} parameter(1)
  dot.3 = f32[4,8,32] dot(a.1, /*i=1*/b.2), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
  constant.4 = f32[] constant(0.5)
  broadcast.5 = f32[4,8,32]{2,1,0} broadcast(constant.4), dimensions={}
  ROOT mul.6 = f32[4,8,32]{2,1,0} multiply(dot.3, broadcast.5), metadata={op_name="jit(step)/jvp(LM)/layer0/mul" stack_frame_id=2}"""
    )
    assert shown == [
        ("aten.bmm.default", [(4, 8, 16), (4, 16, 32)], [(4, 8, 32)]),
        ("aten.mul.Tensor", [(4, 8, 32)], [(4, 8, 32)]),
    ]
    # The innermost frame is the library's; the script's own line called it.
    assert (found.operators[-1].place.module, found.operators[-1].place.source) == (
        "LM.layer0",
        "/home/user/train.py:12",
    )


def test_a_loop_over_stacked_weights_is_written_out_and_slices_are_views():
    loop = """body {
  p.1 = (s32[], f32[8,8]{1,0}, f32[3,8,8]{2,1,0}) parameter(0)
  i.2 = s32[] get-tuple-element(p.1), index=0
  x.3 = f32[8,8]{1,0} get-tuple-element(p.1), index=1
  w.4 = f32[3,8,8]{2,1,0} get-tuple-element(p.1), index=2
  zero.5 = s32[] constant(0)
  slice.6 = f32[1,8,8]{2,1,0} dynamic-slice(w.4, i.2, zero.5, zero.5), dynamic_slice_sizes={1,8,8}
  layer.7 = f32[8,8]{1,0} reshape(slice.6)
  dot.8 = f32[8,8]{1,0} dot(x.3, layer.7), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT t.9 = (s32[], f32[8,8]{1,0}, f32[3,8,8]{2,1,0}) tuple(i.2, dot.8, w.4)
}

condition {
  p.1 = (s32[], f32[8,8]{1,0}, f32[3,8,8]{2,1,0}) parameter(0)
  i.2 = s32[] get-tuple-element(p.1), index=0
  n.3 = s32[] constant(3)
  ROOT less.4 = pred[] compare(i.2, n.3), direction=LT
}
"""
    shown, found = operators(
        """  x.1 = f32[8,8]{1,0} parameter(0)
  w.2 = f32[3,8,8]{2,1,0} parameter(1)
  zero.3 = s32[] constant(0)
  t.4 = (s32[], f32[8,8]{1,0}, f32[3,8,8]{2,1,0}) tuple(zero.3, x.1, w.2)
  while.5 = (s32[], f32[8,8]{1,0}, f32[3,8,8]{2,1,0}) while(t.4), condition=condition, body=body
  ROOT out.6 = f32[8,8]{1,0} get-tuple-element(while.5), index=1""",
        loop,
    )
    assert shown == [("aten.mm.default", [(8, 8), (8, 8)], [(8, 8)])] * 3
    products = [o for o in found.operators if not o.signature.view]
    assert {o.inputs[1] for o in products} == {found.parameters[1]}  # all layers read the one buffer of weights
    assert found.results == [products[-1].outputs[0]]


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,4,8,12},{1,5,9,13},{2,6,10,14},{3,7,11,15}}", [0, 4, 8, 12]),
        ("[4,4]<=[4,4]T(1,0)", [0, 4, 8, 12]),
        ("[4,4]<=[16]", [0, 1, 2, 3]),
    ],
)
def test_replica_groups_in_every_form(groups, members):
    _, found = operators(
        f"""  g.1 = f32[1024]{{0}} parameter(0)
  ROOT r.2 = f32[1024]{{0}} all-reduce(g.1), channel_id=1, replica_groups={groups}, use_global_device_ids=true, to_apply=add"""
    )
    call = found.operators[0].collective
    assert (call.kind, call.nbytes, call.group.members(0).tolist()) == ("AllReduce", 4096, members)


@pytest.mark.parametrize(
    ("name", "phase", "module"),
    [
        ("jit(step)/jvp(LM)/layer0/attn/query/dot_general", Phase.FORWARD, "LM.layer0.attn.query"),
        ("jit(step)/transpose(jvp(LM))/layer0/dot_general", Phase.BACKWARD, "LM.layer0"),
        ("jit(step)/transpose(jvp(LM))/rematted_computation/layer0/tanh", Phase.RECOMPUTE, "LM.layer0"),
        ("jit(step)/mul", Phase.OTHER, ""),
    ],
)
def test_names_tell_phase_and_module(name, phase, module):
    assert (place(name, "").phase, place(name, "").module) == (phase, module)


BATCH, IN, HIDDEN, OUT = 64, 128, 256, 32
SCRIPT = f"""
import jax, jax.numpy as jnp
def loss(p, x, y):
    return ((jax.nn.relu(x @ p["w1"]) @ p["w2"] - y) ** 2).mean()
@jax.jit
def step(p, m, x, y):
    value, g = jax.value_and_grad(loss)(p, x, y)
    m = jax.tree.map(lambda a, b: 0.9 * a + b, m, g)
    return jax.tree.map(lambda a, b: a - 0.1 * b, p, m), m, value
k = jax.random.PRNGKey(0)
p = {{"w1": 0.02 * jax.random.normal(k, ({IN}, {HIDDEN})), "w2": 0.02 * jax.random.normal(k, ({HIDDEN}, {OUT}))}}
m = jax.tree.map(jnp.zeros_like, p)
x, y = jnp.ones(({BATCH}, {IN})), jnp.ones(({BATCH}, {OUT}))
for i in range(5):
    p, m, value = step(p, m, x, y)
    print("loss", float(value))
"""


def record(folder, *options, script=SCRIPT):
    """Runs neuronprof record in a process of its own; returns it and the trace."""
    file = folder / "train.py"
    file.write_text(script)
    command = [sys.executable, "-m", "neuronprof", "record", *options, "-o", str(folder / "t.parquet"), str(file)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run, neuronprof.load(folder / "t.parquet") if run.returncode == 0 else None


def test_a_training_script_against_pencil_and_paper(tmp_path):
    run, trace = record(tmp_path, "--steps", "2", "--values", "real", "--chip", "trainium2")
    losses = [float(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("loss")]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]
    # Forward: 2 B (I H + H O). Backward: the same for the weights, and 2 B H O for the hidden layer's input.
    by_hand = 2 * BATCH * (2 * (IN * HIDDEN + HIDDEN * OUT) + HIDDEN * OUT)
    assert [s["model_flops"] for s in trace.metadata["segments"]] == [by_hand, by_hand]
    # Nothing is donated: weights and momentum stand in HBM twice while the new ones are made.
    parameters = 4 * (IN * HIDDEN + HIDDEN * OUT)
    at_peak = trace.metadata["memory_fit"]["at_peak"]
    assert (at_peak["weights"], at_peak["optimizer_state"]) == (2 * parameters, 2 * parameters)
    assert trace.metadata["parameters"] == IN * HIDDEN + HIDDEN * OUT
    assert set(trace.operators["phase"]) == {"forward", "backward", "optimizer", "other"}  # other: the loss is read
    assert any(source.endswith("train.py:4") for source in trace.operators["source"])


def test_without_values_the_same_operators(tmp_path):
    described = ["op_name", "phase", "shapes", "source", "flops", "bytes"]
    (tmp_path / "none").mkdir()
    (tmp_path / "real").mkdir()
    _, free = record(tmp_path / "none", "--steps", "1", "--values", "none")
    _, real = record(tmp_path / "real", "--steps", "1", "--values", "real")
    tables = [t.operators[described].assign(source=t.operators["source"].str.rsplit("/").str[-1]) for t in (free, real)]
    assert tables[0].equals(tables[1])


def test_replicas_reduce_the_gradients(tmp_path):
    _, trace = record(tmp_path, "--steps", "1", "--values", "none", "--dp", "8")
    events = trace.events
    reduced = events[(events["name"] == "AllReduce") & (events["rank"] == 0) & (events["engine"] == "cc")]
    assert reduced["bytes"].sum() == 4 * (IN * HIDDEN + HIDDEN * OUT)


SHARDED = SCRIPT.replace(
    "x, y = ",
    """
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((8,), ("data",))
put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))
p, m = jax.tree.map(put, p), jax.tree.map(put, m)
x, y = """,
).replace(f"jnp.ones(({BATCH}, {OUT}))", f"put(jnp.ones(({BATCH}, {OUT})) * 1, 'data'); x = put(x * 1, 'data')")


def test_arrays_without_values_are_put_on_many_devices_as_real_ones(tmp_path):
    sent = {}
    for values in ("none", "real"):
        (tmp_path / values).mkdir()
        run, trace = record(tmp_path / values, "--steps", "1", "--values", values, "--world-size", "8", script=SHARDED)
        assert run.returncode == 0, run.stderr
        events = trace.events
        on_first = events[(events["rank"] == 0) & (events["engine"] == "cc")]
        sent[values] = on_first[["name", "bytes"]].values.tolist()
    assert sent["none"] == sent["real"]
    assert sum(nbytes for _, nbytes in sent["none"]) >= 4 * (IN * HIDDEN + HIDDEN * OUT)


def test_an_error_is_the_scripts_own(tmp_path):
    run, _ = record(tmp_path, script="import jax\nraise ValueError('mine')\n")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "ValueError: mine"
    assert "neuronprof" not in run.stderr
    run, _ = record(tmp_path, script="import jax\nprint('nothing')\n")
    assert run.returncode == 2
    assert "No training step was found" in run.stderr


def test_names_in_a_called_computation_are_relative_to_the_caller():
    _, found = operators(
        """  x.1 = f32[8]{0} parameter(0)
  ROOT call.2 = f32[8]{0} call(x.1), to_apply=inner, metadata={op_name="jit(step)/transpose(jvp(LM))/while/body/closed_call"}""",
        """inner {
  y.3 = f32[8]{0} parameter(0)
  tanh.4 = f32[8]{0} tanh(y.3), metadata={op_name="checkpoint/rematted_computation/tanh"}
  ROOT sine.5 = f32[8]{0} sine(tanh.4), metadata={op_name="checkpoint/sin"}
}
""",
    )
    assert [(o.place.phase, o.place.module) for o in found.operators] == [
        (Phase.RECOMPUTE, "LM"),
        (Phase.BACKWARD, "LM"),
    ]
