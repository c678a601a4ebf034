"""FlexAttention: one operator forward and one backward, with PyTorch's values and the cost of the blocks that the mask keeps."""

import textwrap
from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from neuronprof.capture.script import CaptureOptions, record_script  # noqa: E402
from neuronprof.graph.ops import work  # noqa: E402

SCRIPT = """
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention, create_block_mask
DEVICE = 'cuda'
HEADS, KV_HEADS = 4, 4
def changes(model): return None
mask = None
# settings
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(64, HEADS * 16), nn.Linear(64, KV_HEADS * 16), nn.Linear(64, KV_HEADS * 16)
        self.bias = nn.Parameter(torch.zeros(HEADS, 256))
    def forward(self, x):
        q, k, v = (f(x).view(2, 256, -1, 16).transpose(1, 2) for f in (self.q, self.k, self.v))
        out = attend(q, k, v, score_mod=changes(self), block_mask=mask, enable_gqa=HEADS != KV_HEADS)
        return out.transpose(1, 2).reshape(2, 256, -1)
attend = torch.compile(flex_attention)
model = Attention().to(DEVICE)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(2, 256, 64, device=DEVICE)).sum().backward()
    optimizer.step()
print(model.bias.grad is not None)
"""
CAUSAL = "mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 256, 256, device=DEVICE)"
KINDS = {
    "plain": "",
    "causal": CAUSAL,
    "neuron": "DEVICE = 'neuron'",
    "grouped": "KV_HEADS = 2",
    "soft cap": "def changes(model): return lambda score, b, h, q, k: 20 * torch.tanh(score / 20)",
    "learned bias": "def changes(model): return lambda score, b, h, q, k: score + model.bias[h, (q - k).abs()]",
    "documents": "doc = torch.arange(256, device=DEVICE) // 100\n"
    "mask = create_block_mask(lambda b, h, q, k: doc[q] == doc[k], 2, None, 256, 256, device=DEVICE)",
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(settings, values):
        (tmp_path / "train.py").write_text(SCRIPT.replace("# settings", textwrap.dedent(settings)))
        outcome = record_script("train.py", [], CaptureOptions(values=values, warmup=1, steps=2, stop=False))
        shown = capsys.readouterr()
        assert outcome.exit_code == 0, shown.err
        return outcome.recording, shown.out

    return run


def stream(graph):
    return [(graph.signatures[s], int(p)) for s, p in zip(graph.signature, graph.phase, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_one_operator_forward_and_one_backward(run, kind):
    (real, shown), (none, _) = run(KINDS[kind], "real"), run(KINDS[kind], "none")
    assert stream(real.graph) == stream(none.graph)
    names = Counter(real.graph.signatures[s].name for s in real.graph.signature)
    assert names["higher_order.flex_attention"] == names["higher_order.flex_attention_backward"] == 2
    assert not any("softmax" in name or "bmm" in name for name in names)
    assert shown == f"{kind == 'learned bias'}\n"


VALUES = """
import torch
from torch.nn.attention import flex_attention as flex
from torch.nn.functional import scaled_dot_product_attention
model = torch.nn.Linear(4, 4)
model(torch.ones(2, 4))
def tensors():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 96, 16), torch.randn(2, 2, 96, 16), torch.randn(2, 2, 96, 8)
    return [t.cuda().requires_grad_() for t in (q, k, v)]
table = torch.randn(4, 96, requires_grad=True)
doubled = table * 2
where = torch.arange(96)
bias = lambda: (table * 2)[:, (where[:, None] - where).abs()]
causal = flex.create_block_mask(lambda b, h, q, k: q >= k, None, None, 96, 96, device='cuda', BLOCK_SIZE=32)
cases = [
    (dict(), lambda: dict()),
    (dict(block_mask=causal), lambda: dict(is_causal=True)),
    (dict(score_mod=lambda s, b, h, q, k: s + doubled[h, (q - k).abs()]), lambda: dict(attn_mask=bias())),
]
for flexible, plain in cases:
    found = []
    for attend, options in ((flex.flex_attention, flexible), (scaled_dot_product_attention, plain())):
        inputs = tensors()
        out = attend(*inputs, enable_gqa=True, **options)
        table.grad = None
        (out * torch.linspace(0, 1, out.numel()).view(out.shape)).sum().backward()
        found.append([out, *(t.grad for t in inputs), *([] if table.grad is None else [table.grad])])
        doubled = table * 2
    print(all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*found, strict=True)), len(found[0]))
q, k, v = tensors()
out, more = flex.flex_attention(q, k, v, enable_gqa=True, return_aux=flex.AuxRequest(lse=True, max_scores=True))
scores = q @ k.repeat_interleave(2, 1).mT / 4
print(torch.allclose(more.lse, scores.logsumexp(-1), atol=1e-5), torch.allclose(more.max_scores, scores.amax(-1), atol=1e-5))
expected = torch.autograd.grad(scores.logsumexp(-1).sum(), q)[0]
print(torch.allclose(torch.autograd.grad(more.lse.sum(), q)[0], expected, atol=1e-4))
print(next(line for line in (str(more.lse.device), out.device)))
"""


@pytest.mark.parametrize("most_scores", [1 << 24, 5000])
def test_values_and_gradients_are_pytorchs(tmp_path, monkeypatch, capsys, most_scores):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("neuronprof.capture.flex._MOST_SCORES", most_scores)  # 5000: six rows of queries at a time
    (tmp_path / "values.py").write_text(VALUES)
    outcome = record_script("values.py", [], CaptureOptions(values="real", warmup=0))
    shown = capsys.readouterr()
    assert outcome.exit_code == 0, shown.err
    assert shown.out.splitlines() == ["True 4", "True 4", "True 5", "True True", "True", "cuda:0"]


def test_half_the_products_under_a_causal_mask(run):
    """2 x 4 heads, 256 queries and keys of width 16, in blocks of 128: a causal mask keeps 3 of 4, and cuts 2 of them.

    A product is 2 * 8 * 256 * 256 * 16 * 3/4 = 12,582,912 FLOPs: two forward, five backward. Scores: 8 * 256 * 192 = 393,216;
    softmax two vector passes, the mask two more on 2 of the 3 blocks.
    """
    recording, _ = run(CAUSAL, "none")
    found = {s.name.split(".")[1]: work(s) for s in recording.graph.signatures if "flex" in s.name}
    forward, backward = found["flex_attention"], found["flex_attention_backward"]
    assert (forward.flops, backward.flops) == (2 * 12_582_912, 5 * 12_582_912)
    assert (forward.vector, forward.scalar) == (2 * 393_216 + 2 * 262_144, 393_216)
    assert forward.known
    assert backward.known


BAND = """
import torch
from torch.nn.attention.flex_attention import flex_attention, create_block_mask
mask = create_block_mask(lambda b, h, q, k: (q >= k) & (q - k < 300), None, None, 2100, 2100, device='cuda')
model = torch.nn.Linear(8, 8).cuda()
q = model(torch.zeros(1, 1, 2100, 8, device='cuda'))
flex_attention(q, q, q, block_mask=mask).sum().backward()
"""


def test_a_mask_too_large_to_compute_is_sampled(tmp_path, monkeypatch):
    """Without values 2100 x 2100 is too large.

    17 blocks of 128 queries, of which a band of 300 keys meets 1 + 2 + 3 + 14 * 4 of 17 blocks of keys.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "band.py").write_text(BAND)
    found = []
    for values in ("real", "none"):
        recording = record_script("band.py", [], CaptureOptions(values=values, warmup=0)).recording
        attributes = next(s.attributes for s in recording.graph.signatures if s.name == "higher_order.flex_attention")
        found.append((attributes[-4], sum("seen at the first" in note for note in recording.notes)))
    assert found == [(pytest.approx(62 / 289), 0), (pytest.approx(62 / 289), 1)]
