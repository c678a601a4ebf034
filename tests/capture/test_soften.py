"""What a script may do that a recording without values cannot: it goes on, and the recording says so."""

import textwrap

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from neuronprof.capture.script import CaptureOptions, record_script  # noqa: E402

LOOP = """
import torch
model = torch.nn.Linear(100, 100)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad(); model(torch.ones(3, 100)).sum().backward(); optimizer.step()
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Recording and printed lines of a script."""
    monkeypatch.chdir(tmp_path)

    def run(text, values="none"):
        (tmp_path / "train.py").write_text(textwrap.dedent(text))
        outcome = record_script("train.py", [], CaptureOptions(values=values, warmup=0))
        shown = capsys.readouterr()
        assert outcome.exit_code == 0, shown.err
        return outcome.recording, shown.out.splitlines()

    return run


def test_a_checkpoint_without_values_never_replaces_a_file(run, tmp_path):
    torch.save({"weight": torch.full((100, 100), 7.0)}, tmp_path / "best.pt")
    before = (tmp_path / "best.pt").read_bytes()
    recording, lines = run(
        LOOP
        + """
torch.save(model.state_dict(), "best.pt")
torch.save(model, "new.pt")
model.load_state_dict(torch.load("best.pt"))
print(torch.load("new.pt", weights_only=False)(torch.ones(2, 100)).shape)
"""
    )
    assert lines == ["torch.Size([2, 100])"]
    assert (tmp_path / "best.pt").read_bytes() == before
    assert (tmp_path / "new.pt").exists()
    assert recording.notes["checkpoint saved without values"] == 2


def test_a_checkpoint_with_values_is_written_as_ever(run, tmp_path):
    recording, _ = run(LOOP + "torch.save(model.state_dict(), 'best.pt')", values="real")
    assert torch.load(tmp_path / "best.pt")["weight"].shape == (100, 100)
    assert recording.notes == {}


@pytest.mark.parametrize(
    "compiled",
    [
        "model = torch.compile(model)",
        "model = torch.compile(model, backend='neuron', fullgraph=True, dynamic=False)",
        "model.compile(mode='max-autotune')",
        "model.forward = torch.compile(model.forward)",
        "model.forward = torch.compile(mode='reduce-overhead')(model.forward)",
    ],
)
def test_compiled_modules_are_marked(run, compiled):
    recording, _ = run(LOOP.replace("optimizer = ", compiled + "\noptimizer = "), values="real")
    graph = recording.graph
    marked = {
        graph.signatures[s].name
        for s, r in zip(graph.signature, graph.region, strict=True)
        if graph.regions[r] == "compiled"
    }
    assert "aten.addmm.default" in marked
    assert "aten.ones.default" not in marked


def test_a_compiled_model_is_still_the_users_model(run):
    _, lines = run(
        """
        import copy, pickle, torch
        model = torch.nn.Linear(2, 2)
        compiled = torch.compile(model)
        print(sorted(compiled.state_dict()), compiled._orig_mod is model, len(list(compiled.modules())))
        copies = copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))
        for each in (compiled, *copies):
            each(torch.ones(1, 2)).sum().backward()
        """,
        values="real",
    )
    assert lines == ["['bias', 'weight'] True 1"]


def test_sparse_gradients_are_made_dense(run):
    recording, lines = run(
        """
        import torch
        bag = torch.nn.EmbeddingBag(1000, 64, sparse=True)
        table = torch.nn.Embedding(1000, 64, sparse=True)
        optimizer = torch.optim.SparseAdam([*bag.parameters(), *table.parameters()])
        for _ in range(2):
            optimizer.zero_grad()
            (bag(torch.arange(10), torch.tensor([0, 5])).sum() + table(torch.arange(3)).sum()).backward()
            optimizer.step()
        print(bag.weight.grad.is_sparse, table.weight.grad.is_sparse)
        """
    )
    assert lines == ["False False"]
    assert recording.notes["sparse gradient made dense"] == 4


def test_attention_kernels_of_an_accelerator(run):
    recording, _ = run(
        LOOP
        + """
from torch.nn.attention import SDPBackend, sdpa_kernel
q = torch.ones(1, 2, 8, 16)
with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
    torch.nn.functional.scaled_dot_product_attention(q, q, q)
""",
        values="real",
    )
    assert recording.notes == {"choice of an attention kernel left to the simulated device": 1}


def test_values_that_were_not_computed_can_be_looked_at(run):
    recording, lines = run(
        LOOP
        + """
import copy, pickle
x = model(torch.ones(3, 100)) * torch.ones(100)
print(x.detach().numpy().shape, len(x.tolist()), f"{x.sum():.1f}", f"{x.mean().item():.2f}", copy.deepcopy(model)(x).shape)
print(x.detach().argmax(1).shape, pickle.loads(pickle.dumps(x.detach())).shape, type(repr(x)).__name__)
"""
    )
    assert lines == ["(3, 100) 3 1.0 1.00 torch.Size([3, 100])", "torch.Size([3]) torch.Size([3, 100]) str"]
    assert sum(recording.notes.values()) >= 4
