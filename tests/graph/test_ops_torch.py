"""Costs of operators as PyTorch dispatches them: products against its own counter, and no ordinary operator without a rule."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from neuronprof.graph.ir import Signature, Tensor
from neuronprof.graph.ops import work
from neuronprof.graph.rules import RULES

torch = pytest.importorskip("torch", reason="needs neuronprof[torch]")
torch.set_num_threads(1)


def signatures_of(run: Callable[[], Any]) -> list[Signature]:
    """The operators that PyTorch dispatches while `run` runs."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def tensors(tree: Any) -> list[Tensor]:
        found = [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]
        return [Tensor(str(t.dtype).removeprefix("torch."), tuple(t.shape), tuple(t.stride())) for t in found]

    class Census(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[Signature] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if not func.is_view:
                given = (args, kwargs or {})
                mutates, position = [], 0
                named = dict(zip([a.name for a in func._schema.arguments], args, strict=False)) | (kwargs or {})
                for argument in func._schema.arguments:
                    count = len(tensors(named.get(argument.name)))
                    if argument.alias_info is not None and argument.alias_info.is_write:
                        mutates += range(position, position + count)
                    position += count
                others = tuple(a for a in tree_leaves(given) if not isinstance(a, torch.Tensor))
                self.found.append(
                    Signature(str(func), tuple(tensors(given)), tuple(tensors(out)), others, tuple(mutates))
                )
            return out

    with Census() as census:
        run()
    return census.found


def counted() -> dict[str, Callable[[], Any]]:
    """Real calls of the operators that torch.utils.flop_counter counts and a CPU runs, forward and backward."""
    from torch import nn
    from torch.nn import functional

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, requires_grad=True)

    def trained(module: Any, *inputs: Any) -> None:
        module(*inputs).sum().backward()

    fp8 = torch.ones(16, 16).to(torch.float8_e4m3fn)
    one = torch.ones(())
    return {
        "mm": lambda: (leaf(3, 5) @ leaf(5, 7)).sum().backward(),
        "addmm": lambda: trained(nn.Linear(5, 7), torch.randn(3, 5)),
        "bmm": lambda: torch.bmm(leaf(2, 3, 5), leaf(2, 5, 7)).sum().backward(),
        "baddbmm": lambda: torch.baddbmm(leaf(2, 3, 7), leaf(2, 3, 5), leaf(2, 5, 7)),
        "einsum": lambda: torch.einsum("bik,bkj->bij", leaf(2, 3, 5), leaf(2, 5, 7)).sum().backward(),
        "scaled_mm": lambda: torch._scaled_mm(fp8, fp8.t(), one, one, out_dtype=torch.bfloat16),
        "conv1d": lambda: trained(nn.Conv1d(4, 6, 3, stride=2, padding=1), leaf(2, 4, 9)),
        "conv2d": lambda: trained(nn.Conv2d(4, 6, 3, dilation=2), leaf(2, 4, 9, 8)),
        "conv2d of data": lambda: trained(nn.Conv2d(4, 6, (3, 1)), torch.randn(2, 4, 9, 8)),
        "conv2d without bias": lambda: trained(nn.Conv2d(4, 6, 3, bias=False), leaf(2, 4, 9, 8)),
        "grouped conv2d": lambda: nn.Conv2d(4, 8, 3, groups=2)(leaf(2, 4, 9, 8)),
        "conv3d": lambda: trained(nn.Conv3d(2, 3, 2), leaf(1, 2, 4, 5, 6)),
        "transposed": lambda: trained(nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), leaf(2, 4, 5, 6)),
        "transposed grouped": lambda: nn.ConvTranspose1d(4, 8, 3, groups=2)(leaf(2, 4, 5)),
        "encoder": lambda: trained(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), leaf(2, 5, 8)),
        "attention without a kernel": lambda: functional.scaled_dot_product_attention(
            leaf(2, 2, 4, 8), leaf(2, 2, 6, 8), leaf(2, 2, 6, 8), dropout_p=0.5
        ),
    }  # fmt: skip


FUSED_ON_CPU = "_scaled_dot_product_flash_attention_for_cpu"


@pytest.mark.parametrize(
    "call",
    ["mm", "addmm", "bmm", "baddbmm", "einsum", "scaled_mm", "conv1d", "conv2d", "conv2d of data", "conv2d without bias", "grouped conv2d",
     "conv3d", "transposed", "transposed grouped", "encoder", "attention without a kernel"],
)  # fmt: skip
def test_flops_equal_flop_counter(call: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    run = counted()[call]
    with FlopCounterMode(display=False) as counter:
        run()
    ours = [
        work(s) for s in signatures_of(run) if FUSED_ON_CPU not in s.name
    ]  # flop_counter does not know the CPU's kernel
    assert sum(w.flops for w in ours) == counter.get_total_flops() > 0


@pytest.mark.parametrize("kind", ["flash", "efficient", "cudnn"])
def test_attention_equals_flop_counter(kind: str) -> None:
    from torch.utils import flop_counter

    # 2 x 6 query heads over 3 key heads, 16 queries, 24 keys, width 8 and 4; those kernels run on no CPU: the formulas are called
    query, key, value, grad = (2, 6, 16, 8), (2, 3, 24, 8), (2, 3, 24, 4), (2, 6, 16, 4)
    inputs, gradient = tuple(Tensor("float32", s) for s in (query, key, value)), Tensor("float32", grad)
    forward = Signature(f"aten._scaled_dot_product_{kind}_attention.default", inputs, (gradient,))
    backward = Signature(f"aten._scaled_dot_product_{kind}_attention_backward.default", (gradient, *inputs), inputs)
    assert work(forward).flops == flop_counter.sdpa_flop_count(query, key, value)
    assert work(backward).flops == flop_counter.sdpa_backward_flop_count(grad, query, key, value)


def test_attention_on_the_cpu_counts_like_the_other_kernels() -> None:
    q, k, v = (torch.randn(2, 4, n, 8, requires_grad=True) for n in (16, 24, 24))

    def run() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()

    ours = [work(s) for s in signatures_of(run) if FUSED_ON_CPU in s.name]
    one = 2 * 8 * 16 * 8 * 24  # each of the two forward and five backward products
    assert [w.flops for w in ours] == [2 * one, 5 * one]


def test_lstm_products_equal_those_of_its_cells() -> None:
    lstm = torch.nn.LSTM(3, 4)

    def run() -> None:
        lstm(torch.randn(5, 2, 3, requires_grad=True))[0].sum().backward()

    ours = sum(work(s).flops for s in signatures_of(run))
    forward = 2 * 5 * 2 * 16 * (3 + 4)  # steps x batch x gates x (width + hidden)
    assert ours == 3 * forward


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Adam", {}),
        ("AdamW", {"amsgrad": True}),
        ("AdamW", {"lr": 0.1, "maximize": True}),
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("SGD", {"lr": 0.1, "weight_decay": 0.5}),
        ("Adagrad", {}),
    ],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_fused_optimizers_walk_each_parameter_once(name: str, options: dict[str, Any], scaled: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))  # 16 + 4 + 12 + 3 = 35 elements
    optimizer = getattr(torch.optim, name)(model.parameters(), fused=True, **options)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)

    def run() -> None:
        scaler.scale(model(torch.ones(2, 4)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    run()  # the first step makes the state
    optimizer.zero_grad()
    signature = next(s for s in signatures_of(run) if s.name.startswith(f"aten._fused_{name.lower()}_"))
    cost = work(signature)
    assert cost.elements == 35
    lists = len(signature.inputs) // 4
    gradients = [i for i in signature.mutates if 4 <= i < 8]
    written = dict(zip(signature.mutates, cost.writes[len(signature.outputs) :], strict=True))
    assert lists >= 2
    assert [written[i] for i in gradients] == ([64, 16, 48, 12] if scaled else [0, 0, 0, 0])
    assert [written[i] for i in range(4)] == [64, 16, 48, 12]


def test_ordinary_training_has_a_rule_for_every_operator() -> None:
    from torch import nn
    from torch.nn import functional

    image = nn.Sequential(
        *[
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.GroupNorm(2, 4),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
        ],
        *[nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 5)],
    )
    text = nn.Sequential(
        nn.Embedding(7, 8), nn.TransformerEncoderLayer(8, 2, 16, activation="gelu"), nn.RMSNorm(8), nn.Linear(8, 7)
    )
    optim = torch.optim
    kinds = (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adadelta, optim.NAdam)

    def train(model: Any, optimizer: Any, inputs: Any, targets: Any) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(inputs)
            loss = functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), label_smoothing=0.1
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    def run() -> None:
        for kind, foreach in product(kinds, (False, True)):
            train(image, kind(image.parameters(), foreach=foreach), torch.randn(2, 3, 8, 8), torch.randint(5, (2,)))
            train(text, kind(text.parameters(), foreach=foreach), torch.randint(7, (3, 4)), torch.randint(7, (3, 4)))

    found = {s.name: work(s).known for s in signatures_of(run)}
    assert len(found) > 60
    assert [name for name, known in found.items() if not known] == []


def test_layers_in_one_operator_have_the_products_of_their_parts() -> None:
    from torch import nn

    def flops(module: Any, x: Any, eager: bool) -> int:
        def run() -> None:
            with torch.inference_mode(not eager):
                module(x)

        return sum(work(s).flops for s in signatures_of(run))

    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    for module, shape in ((encoder, (2, 5, 8)), (nn.LSTM(8, 4, num_layers=2), (5, 2, 8))):
        x = torch.randn(shape)
        assert flops(module.eval(), x, eager=False) == flops(module.train(), x, eager=True) > 0


def test_bilinear_products() -> None:
    one, other = torch.randn(3, 4, requires_grad=True), torch.randn(3, 5, requires_grad=True)

    def run() -> None:
        torch.nn.Bilinear(4, 5, 6)(one, other).sum().backward()

    whole = 2 * 3 * 6 * 4 * 5  # rows x outputs x both widths
    assert [work(s).flops for s in signatures_of(run) if "_trilinear" in s.name] == [
        whole
    ] * 4  # forward, three gradients


def test_rules_name_operators_that_exist() -> None:
    known = {
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
    }
    known |= {
        schema.name.partition("::")[2] for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("aten::")
    }
    named = {n for n in RULES if "." not in n}
    assert {n for n in named if not {n, f"{n}_", f"_foreach_{n}"} & known} == set()
