"""The recorded stream against PyTorch's own counters, and against itself without values."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from capture_models import MODELS, gpt, gru, lstm, mlp, resnet
from torch.ops import aten
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from neuronprof.capture.engine import Engine
from neuronprof.graph.ir import Graph, Recording, Tensor
from neuronprof.graph.ops import work
from neuronprof.terms import PHASES, Phase

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Step = Callable[[], None]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.set_num_threads(threads)
    torch.backends.mha.set_fastpath_enabled(fast)


def training(make: Any, optimizer: Any = None, amp: bool = False) -> Step:
    torch.manual_seed(0)
    model, loss = make()
    chosen = (optimizer or (lambda p: torch.optim.AdamW(p, foreach=False)))(model.parameters())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        chosen.step()
        chosen.zero_grad()

    return step


def record(make: Any, values: str, **options: Any) -> Recording:
    engine = Engine(values)
    with engine:
        step = training(make, **options)
        for _ in range(2):
            step()
    return engine.finish(steps=1, warmup=1)


def operators(graph: Graph) -> Iterator[tuple[int, Any, str]]:
    for op in range(len(graph)):
        yield op, graph.signatures[graph.signature[op]], PHASES[graph.phase[op]]


# --- FLOPs against FlopCounterMode

# The counter does not know the attention kernel of the CPU: it is given PyTorch's own formula for the other attention kernels.
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, out_shape=None, **kwargs: sdpa_flop_count(
        q, k, v
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *args, out_shape=None, **kwargs: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_flops_equal_pytorchs_own_counter(make: Any) -> None:
    # oneDNN's LSTM is one operator that the counter does not know; without oneDNN it is matrix products that it does know.
    with torch.backends.mkldnn.flags(enabled=make is not lstm):
        graph = record(make, "real").graph
        _, loss = make()
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            loss().backward()
    recorded = sum(work(s).flops for _, s, phase in operators(graph) if phase != Phase.OPTIMIZER)
    assert recorded == counter.get_total_flops() > 0


# --- operators and shapes against torch.profiler


def composite(event: Any) -> bool:
    """Whether PyTorch takes the operator apart before any backend sees it: the profiler shows it, and its parts below it."""
    packet = getattr(aten, event.name.removeprefix("aten::"), None)
    if (
        packet is None or event.name == "aten::repeat_interleave"
    ):  # of its overloads only the one these models use is taken apart
        return True
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    forms = [getattr(packet, o).name() for o in packet.overloads() if "out" not in o and "prim" not in o]
    return all(has_kernel(form, "CompositeImplicitAutograd") and not has_kernel(form, "CPU") for form in forms)


def dispatched(events: Any) -> Iterator[Any]:
    """The outermost operators that are not taken apart; what they call inside is how a kernel works."""
    for event in events:
        if event.name.startswith("aten::") and not composite(event):
            yield event
        else:
            yield from dispatched(event.cpu_children)


LISTS = (
    "cat",
    "stack",
    "index",
    "index_put",
    "_index_put_impl",
)  # the profiler does not show the shapes of tensor lists
# Under any dispatch mode autograd takes a way that a tensor subclass could follow: sums of gradients are not in place (add for add_), a
# saved result is detached when it is used, and a few operators have a twin.
TWINS = {"_reshape_alias": "view", "_index_put_impl": "index_put"}


def key(name: str, shapes: Any) -> tuple[str, Any]:
    name = TWINS.get(name.rstrip("_"), name.rstrip("_")) if not name.startswith("_reshape") else "view"
    return name, None if name.startswith("_foreach") or name in LISTS else tuple(tuple(s) for s in shapes if s)


# Not the GRU: in its cell autograd also keeps 48 copies under a dispatch mode (the operators are otherwise the same).
@pytest.mark.parametrize("make", [m for m in MODELS if m is not gru], ids=lambda make: make.__name__)
def test_operators_and_shapes_equal_the_profilers(make: Any) -> None:
    step = training(make)
    step()
    engine = Engine("real")
    with engine:
        engine.mark_step()
        step()
        engine.mark_step()
    tape = engine.tape  # before the step counters, which stay on the host, are taken out
    ours = Counter(
        key(s.name.split(".")[1], [t.shape for t in s.inputs])
        for s in (tape.signatures[i] for i in tape.recorder.signature)
    )
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        step()
    roots = [e for e in profiler.events() if e.cpu_parent is None]
    theirs = Counter(key(e.name.removeprefix("aten::"), e.input_shapes) for e in dispatched(roots))
    for counts in (ours, theirs):
        for name in [k for k in counts if k[0] in ("detach", "scalar_tensor")]:
            del counts[name]
    assert ours == theirs


# --- without values


def layout(tensor: Tensor, strict: bool) -> Any:
    # oneDNN's LSTM has a workspace whose size no shape rule of PyTorch tells.
    return (tensor.dtype, tensor.stride if strict else None) if tensor.dtype == "uint8" else tensor


def stream(recording: Recording, strict: bool = True) -> list[Any]:
    graph = recording.graph
    return [
        (
            (
                s.name,
                [layout(t, strict) for t in s.inputs],
                [layout(t, strict) for t in s.outputs],
                s.attributes,
                s.mutates,
                s.view,
            ),
            (phase, graph.modules[graph.module[op]], graph.sources[graph.source[op]], graph.forward[op]),
            (graph.inputs(op), graph.outputs(op)),
        )
        for op, s, phase in operators(graph)
    ]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, momentum=0.9),
    "adamw foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, fused=True),
}


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_the_stream_without_values_is_the_same(make: Any, amp: bool) -> None:
    if make is lstm and amp and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("needs a CPU on which PyTorch itself computes an LSTM in bfloat16 (AVX-512)")
    real, free = record(make, "real", amp=amp), record(make, "none", amp=amp)
    strict = make is not lstm
    assert stream(free, strict) == stream(real, strict)
    assert strict is False or free.graph.buffers == real.graph.buffers
    assert (real.values, free.values) == ("real", "none")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", [mlp, resnet, gpt], ids=lambda make: make.__name__)
def test_optimizers_give_the_same_stream_without_values(make: Any, optimizer: str) -> None:
    real, free = (record(make, values, optimizer=OPTIMIZERS[optimizer]) for values in ("real", "none"))
    assert stream(free) == stream(real)
    assert free.graph.buffers == real.graph.buffers
