"""The engine on scripts that one can draw: every operator with its place, buffers with their roles, and what happens without values."""

import copy
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import optimizer as optim

from neuronprof.capture import budget
from neuronprof.capture.engine import Engine, current
from neuronprof.capture.simtensor import is_simulated
from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Graph, Recording, Signature, Tensor
from neuronprof.terms import PHASES, Role

HERE = Path(__file__)
ITEM = "item() of a value that was not computed (1.0, or False)"
HALF = "a mask that was not computed (half dense)"


def record(script: Callable[[Engine], Any], values: str = "real", warmup: int = 0) -> Recording:
    engine = Engine(values, notice=lambda text: None)
    engine.script_folder = str(HERE.parent)
    with engine:
        script(engine)
    return engine.finish(steps=3, warmup=warmup)


def rows(graph: Graph) -> list[tuple[Any, ...]]:
    """(phase, operator, buffers read, buffers of the results, module, forward operator), without views."""
    found = []
    for op in range(len(graph)):
        signature = graph.signatures[graph.signature[op]]
        if not signature.view:
            name, place = signature.name.split(".")[1], graph.modules[graph.module[op]]
            found.append(
                (
                    str(PHASES[graph.phase[op]]),
                    name,
                    graph.inputs(op),
                    graph.outputs(op),
                    place,
                    name_of(graph, graph.forward[op]),
                )
            )
    return found


def name_of(graph: Graph, op: int) -> str:
    return graph.signatures[graph.signature[op]].name.split(".")[1] if op >= 0 else ""


def test_two_layers_whole() -> None:
    #  x [2, 4] -- Linear w0 [3, 4], b0 --> relu --> Linear w1 [1, 3], b1 --> sum; SGD
    def script(engine: Engine) -> None:
        m = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        x = torch.ones(2, 4)
        for _ in range(2):
            m(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    graph = record(script, warmup=1).graph
    names = {i: (b.role, b.name) for i, b in enumerate(graph.buffers) if b.name}
    paths = [f"Sequential.{n}" for n in ("0.weight", "0.bias", "2.weight", "2.bias")]
    assert [names[i] for i in range(4)] == [(Role.WEIGHTS, path) for path in paths]
    w0, b0, w1, b1 = range(4)
    x = next(i for i, b in enumerate(graph.buffers) if b.role == Role.INPUTS)
    # the results, numbered in the order of their birth
    h0 = next(i for i, b in enumerate(graph.buffers) if b.birth >= 0)
    h1, y, loss, one, dh1, dw1, db1, dh0, dw0, db0 = range(h0 + 1, h0 + 11)
    first, relu, second = "Sequential.0", "Sequential.1", "Sequential.2"
    assert rows(graph) == [
        ("forward", "addmm", [b0, x, w0], [h0], first, ""),
        ("forward", "relu", [h0], [h1], relu, ""),
        ("forward", "addmm", [b1, h1, w1], [y], second, ""),
        ("forward", "sum", [y], [loss], "", ""),
        ("forward", "ones_like", [loss], [one], "", ""),
        ("backward", "mm", [one, w1], [dh1], second, "addmm"),
        ("backward", "mm", [one, h1], [dw1], second, "addmm"),
        ("backward", "sum", [one], [db1], second, "addmm"),
        ("backward", "threshold_backward", [dh1, h1], [dh0], relu, "relu"),
        ("backward", "mm", [dh0, x], [dw0], first, "addmm"),
        ("backward", "sum", [dh0], [db0], first, "addmm"),
        ("optimizer", "add_", [w0, dw0], [w0], "", ""),
        ("optimizer", "add_", [b0, db0], [b0], "", ""),
        ("optimizer", "add_", [w1, dw1], [w1], "", ""),
        ("optimizer", "add_", [b1, db1], [b1], "", ""),
    ]
    assert [names[b] for b in (dw0, db0, dw1, db1)] == [(Role.GRADIENTS, path) for path in paths]
    roles = [graph.buffers[b].role for b in (h0, h1, y, dh1, dh0)]
    assert roles == [Role.WORKSPACE, Role.ACTIVATIONS, Role.WORKSPACE, Role.WORKSPACE, Role.WORKSPACE]


def test_a_buffer_lives_from_its_operator_to_the_last_that_needs_it() -> None:
    def script(engine: Engine) -> None:
        m = nn.Linear(4, 4)
        x = torch.ones(2, 4)
        for _ in range(2):
            engine.mark_step()
            with torch.no_grad():
                a = m(x)  # 0: t, 1: addmm -> a
                b = a.view(8)  # 2: a view of a
                del a
                c = b + 1  # 3: b is the last that holds a's buffer
                del b
                c.mul_(2)  # 4
                del c

    graph = record(script, warmup=1).graph
    assert [graph.signatures[i].name.split(".")[1] for i in graph.signature] == ["t", "addmm", "view", "add", "mul_"]
    assert [graph.signatures[i].view for i in graph.signature] == [True, False, True, False, False]
    a, c = graph.outputs(1)[0], graph.outputs(3)[0]
    assert graph.inputs(2) == graph.outputs(2) == graph.inputs(3) == [a]
    assert graph.inputs(4) == graph.outputs(4) == [c]
    assert graph.signatures[graph.signature[4]].mutates == (0,)
    assert [(graph.buffers[b].birth, graph.buffers[b].death, graph.buffers[b].nbytes) for b in (a, c)] == [
        (1, 3, 32),
        (3, 4, 32),
    ]


def test_source_lines_are_the_users() -> None:
    def script(engine: Engine) -> None:
        m = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        out = m(torch.ones(2, 4)).sum()  # FORWARD
        out.backward()  # BACKWARD
        optimizer.step()  # UPDATE

    graph = record(script).graph
    lines = HERE.read_text().splitlines()
    line = {
        tag: next(i for i, text in enumerate(lines, 1) if text.endswith(f"# {tag}"))
        for tag in ("FORWARD", "BACKWARD", "UPDATE")
    }
    found = {name_of(graph, op): graph.sources[graph.source[op]] for op in range(len(graph))}
    assert (
        found["addmm"] == found["mm"] == f"{HERE.name}:{line['FORWARD']}"
    )  # a gradient has the line of its forward operator
    assert found["ones_like"] == f"{HERE.name}:{line['BACKWARD']}"
    assert found["add_"] == f"{HERE.name}:{line['UPDATE']}"


def test_signatures_hold_plain_values() -> None:
    def script(engine: Engine) -> None:
        m = nn.Linear(4, 4)
        with torch.autocast("cpu", torch.bfloat16):
            m(torch.ones(2, 4)).to(memory_format=torch.contiguous_format).sum(-1, keepdim=True)

    signatures = {s.name: s for s in record(script).graph.signatures}
    cast = signatures["aten._to_copy.default"]
    assert (cast.inputs[0].dtype, cast.outputs[0].dtype, "bfloat16" in cast.attributes) == ("float32", "bfloat16", True)
    plain = (bool, int, float, str, type(None))
    assert all(type(a) in plain for s in signatures.values() for a in s.attributes)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad * 2 * x


def test_custom_functions_are_linked_too() -> None:
    def script(engine: Engine) -> None:
        m = nn.Linear(4, 4)
        Square.apply(m(torch.ones(2, 4))).sum().backward()

    graph = record(script).graph
    products = [op for op in range(len(graph)) if name_of(graph, op) == "mul"]
    assert [str(PHASES[graph.phase[op]]) for op in products] == ["forward", "backward", "backward"]
    assert [graph.forward[op] for op in products[1:]] == [products[0]] * 2


def test_batch_norm_writes_its_statistics() -> None:
    graph = record(lambda engine: nn.BatchNorm1d(3)(torch.ones(4, 3))).graph
    norm = next(s for s in graph.signatures if s.name == "aten.native_batch_norm.default")
    assert norm.mutates == (3, 4)
    assert {b.name for b in graph.buffers if b.role == Role.WEIGHTS} >= {
        "BatchNorm1d.running_mean",
        "BatchNorm1d.weight",
    }


def test_copies_from_the_host_and_what_ran_there() -> None:
    def script(engine: Engine) -> None:
        m = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(2):
            x = torch.rand(2, 4) - 0.5  # on the host
            engine.transfer("h2d", x)
            loss = m(x).sum()
            loss.backward()
            optimizer.step()
            engine.transfer("d2h", loss)

    graph = record(script, warmup=1).graph
    shape, scalar = Tensor("float32", (2, 4), (4, 1)), Tensor("float32", (), ())
    assert graph.signatures[graph.signature[0]] == Signature("neuronprof.d2h", (scalar,), ())  # of the step before
    assert graph.signatures[graph.signature[1]] == Signature("neuronprof.h2d", (), (shape,))
    x = graph.outputs(1)[0]
    assert graph.buffers[x].role == Role.INPUTS
    assert not any("rand" in s.name for s in graph.signatures)


def test_host_counters_of_optimizers_are_left_out_and_fused_ones_kept() -> None:
    def script(engine: Engine, **options: Any) -> None:
        m = nn.Linear(4, 1)
        optimizer = torch.optim.Adam(m.parameters(), **options)
        for _ in range(2):
            m(torch.ones(2, 4)).sum().backward()
            optimizer.step()

    plain, fused = record(script), record(lambda engine: script(engine, fused=True))
    assert not any("_local_scalar" in s.name for s in plain.graph.signatures)
    assert any(s.name == "aten._foreach_add_.Scalar" or "_foreach_add_" in s.name for s in fused.graph.signatures)
    assert sum(s.name == "aten._fused_adam_.default" for s in fused.graph.signatures) == 1
    states = {b.name for b in plain.graph.buffers if b.role == Role.OPTIMIZER_STATE}
    assert {"Linear.weight.exp_avg", "Linear.bias.exp_avg_sq"} <= states


def test_shared_weights_have_one_buffer_and_two_models_two_names() -> None:
    def script(engine: Engine) -> None:
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        (first(torch.ones(2, 4)) + second(torch.ones(2, 4))).sum()

    recording = record(script)
    weights = [b.name for b in recording.graph.buffers if b.role == Role.WEIGHTS]
    assert weights == ["Linear.weight", "Linear.bias", "Linear#2.bias"]
    assert recording.parameters == 16 + 4 + 4


def test_other_tracers_see_their_own_operators() -> None:
    def script(engine: Engine) -> None:
        m = nn.Linear(4, 4)
        m(torch.ones(2, 4))
        before = len(engine.tape.recorder)
        with FakeTensorMode():
            torch.empty(8, 8) @ torch.empty(8, 8)
        assert len(engine.tape.recorder) == before
        gradient = torch.func.vmap(torch.func.grad(lambda v: v.sin().sum()))(torch.ones(3, 2))
        assert torch.equal(gradient, torch.ones(3, 2).cos())
        assert len(engine.tape.recorder) > before

    record(script)


def _raise_under(engine: Engine) -> None:
    assert current() is engine
    raise ZeroDivisionError


def test_pytorch_is_left_as_it_was() -> None:
    def state() -> Any:
        hooks = nn.modules.module
        return (
            list(hooks._global_forward_pre_hooks), list(hooks._global_forward_hooks), torch.optim.Optimizer.__init__,
            torch.utils.data.DataLoader.__iter__, torch.backends.mha.get_fastpath_enabled(),
            list(optim._foreach_supported_types), current(),
        )  # fmt: skip

    before = state()
    engine = Engine("real")
    with pytest.raises(ZeroDivisionError), engine:
        _raise_under(engine)
    assert state() == before


# --- without values


def big(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def test_a_model_of_any_size() -> None:
    def script(engine: Engine) -> None:
        m = nn.Sequential(nn.Linear(100_000, 100_000), nn.Linear(100_000, 10))  # 40 GB
        optimizer = torch.optim.AdamW(m.parameters())
        for _ in range(2):
            m(big(64, 100_000)).sum().backward()
            optimizer.step()
        assert is_simulated(m[0].weight)
        assert is_simulated(m[0].weight.grad)

    recording = record(script, "none", warmup=1)
    assert recording.parameters == 100_000**2 + 100_000 + 1_000_000 + 10
    assert max(b.nbytes for b in recording.graph.buffers) == 4 * 100_000**2


def test_auto_computes_until_it_would_be_too_much() -> None:
    said: list[str] = []
    engine = Engine("auto", notice=said.append)
    with engine:
        small = nn.Linear(100, 100)(torch.ones(2, 100))
        assert not is_simulated(small)
        assert engine.values == "real"
        wide = torch.ones(1 << 16, 1, requires_grad=True)
        assert is_simulated(wide @ wide.T)  # 16 GiB
        assert not is_simulated(torch.ones(3) + 1)
    assert engine.values == "none"
    assert len(said) == 1
    assert said[0].startswith("The script's tensors need 16 GiB: from here on no values are computed")


def test_auto_counts_the_flops_of_a_step() -> None:
    said: list[str] = []
    engine = Engine("auto", notice=said.append)
    with engine, torch.no_grad():
        engine.mark_step()
        assert not is_simulated(torch.ones(1024, 1024) @ torch.ones(1024, 8))
        assert is_simulated(
            torch.ones(1 << 13, 1 << 13) @ torch.ones(1 << 13, 1 << 13)
        )  # 1.1 TFLOP by itself: not computed
    assert said == [
        "A step of the script needs more than 1 TFLOP: from here on no values are computed "
        "(--values real computes them, --values none never does)."
    ]


@pytest.mark.parametrize(("emulated", "values"), [(frozenset[str](), "real"), (frozenset({"bfloat16"}), "none")])
def test_auto_counts_more_for_products_that_the_cpu_emulates(
    emulated: frozenset[str], values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "_emulated", lambda: emulated)
    monkeypatch.setattr(budget, "MOST_FLOPS", 2.0 * 64**3 * 5)
    said: list[str] = []
    engine = Engine("auto", notice=said.append)
    with engine, torch.no_grad():
        engine.mark_step()
        for _ in range(3):
            torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)
    assert engine.values == values
    assert [" in 16 bits, which this CPU only emulates" in text for text in said] == [True] * bool(emulated)


def test_scalars_are_invented_and_told() -> None:
    def script(engine: Engine) -> None:
        loss = big(100, 100).mean()
        assert (loss.item(), float(loss * 0.5), bool(loss.isnan())) == (1.0, 0.5, False)
        assert f"{loss:.3f}" == "1.000"
        assert torch.full((), 3.0).item() == 3.0  # computed
        engine.mark_step()
        torch.ones(1).add_(1)
        engine.mark_step()

    assert record(script, "none").notes == {ITEM: 4}


def test_routing_is_balanced_and_masks_are_half_dense() -> None:
    def script(engine: Engine) -> None:
        scores = big(1024, 8)
        experts = scores.topk(2).indices
        assert not is_simulated(experts)
        assert all(a != b for a, b in experts.tolist())
        counts = torch.bincount(experts.flatten(), minlength=8)
        assert counts.sum() == 2048
        assert counts.min() > 128  # 256 each if evenly spread
        assert scores[scores[:, 0] > 0].shape == (512, 8)
        assert scores.masked_select(scores > 0).shape == (4096,)
        assert torch.nonzero(scores > 0).shape == (4096, 2)
        assert scores[torch.arange(1024) < 100].shape == (100, 8)  # this mask is known
        scores[scores > 0] = 0
        engine.mark_step()
        torch.ones(1).add_(1)
        engine.mark_step()

    assert record(script, "none").notes == {"balanced random indices for topk": 1, HALF: 4}


def test_small_tensors_and_integers_are_computed() -> None:
    with Engine("none"):
        assert torch.arange(10_000).sum().item() == 49_995_000
        assert (torch.eye(3) @ torch.ones(3)).tolist() == [1, 1, 1]
        bias, large = torch.zeros(8), big(1024, 8)
        assert bias.add_(large.sum(0)) is bias
        assert not is_simulated(bias)
        assert is_simulated(torch.arange(100_000).float())
        assert is_simulated(torch.zeros(1 << 12, 1 << 12, dtype=torch.int64))
        assert torch.device("meta") == torch.empty(10_000, device="meta").device


def test_views_of_a_tensor_without_values_share_its_buffer() -> None:
    def script(engine: Engine) -> None:
        x = big(100, 100)
        engine.mark_step()
        x[3:5].t().reshape(-1).unsqueeze(0).squeeze(0).add_(1)
        x.t_()
        engine.mark_step()
        assert x.data_ptr() == x.t().view(-1).data_ptr()
        assert x[1:].data_ptr() != x.data_ptr()

    graph = record(script, "none").graph
    assert len(graph.buffers) == 2  # reshape of a transposed slice copies
    assert [graph.signatures[i].view for i in graph.signature if "add_" not in graph.signatures[i].name].count(
        False
    ) == 1


def test_python_sees_a_tensor() -> None:
    with Engine("none"):
        m = nn.Linear(100, 100)
        again = copy.deepcopy(m)
        assert isinstance(again.weight, nn.Parameter)
        assert again.weight.requires_grad
        assert is_simulated(again.weight)
        assert again.weight.data_ptr() != m.weight.data_ptr()
        assert repr(m.weight) == "tensor(<not computed>, size=(100, 100), dtype=torch.float32)"
        assert np.asarray(m.weight.detach()).shape == (100, 100)
        assert big(5000).tolist()[:2] == [1, 1]
        with pytest.raises(RuntimeError, match="requires grad"):
            m.weight.numpy()
        with pytest.raises(NeuronprofError, match="--values real"):
            big(1 << 25).numpy()
        m.load_state_dict(again.state_dict())
        assert m.to(torch.bfloat16).weight.dtype == torch.bfloat16
        buffer = io.BytesIO()
        torch.save(big(100, 100), buffer)


def test_mistakes_of_the_script_are_pytorchs_own_errors() -> None:
    with Engine("none"), pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        big(100, 100) @ big(200, 100)
    with Engine("none"), pytest.raises(RuntimeError, match="size"):
        big(100, 100).add_(big(101, 100))


def test_sparse_gradients_keep_their_indices() -> None:
    def script(engine: Engine) -> None:
        bag = nn.EmbeddingBag(1000, 16, sparse=True)
        optimizer = torch.optim.SparseAdam(bag.parameters())
        for _ in range(2):
            bag(torch.randint(0, 1000, (8, 4))).sum().backward()
            optimizer.step()

    assert len(record(script, "none").segments) == 2


def test_backward_in_a_thread_of_its_own() -> None:
    def script(engine: Engine) -> None:
        m = nn.Linear(100, 100)
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(2):
            thread = threading.Thread(target=m(big(64, 100)).sum().backward)
            thread.start()
            thread.join()
            optimizer.step()
        assert is_simulated(m.weight.grad)

    phases = {str(PHASES[p]) for p in record(script, "none").graph.phase}
    assert "backward" in phases


def test_a_table_of_signatures_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuronprof.capture.engine._MOST_ENTRIES", 60)
    engine = Engine("none")
    engine.stop_after = 2
    with engine:
        m = nn.Linear(100, 100)
        optimizer = torch.optim.AdamW(m.parameters())  # bias corrections are other numbers in each step
        for _ in range(20):
            F.mse_loss(m(big(64, 100)), big(64, 100)).backward()
            optimizer.step()
            assert len(engine._entries) <= 60
