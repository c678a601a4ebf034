"""Training scripts of the kinds that people write, each recorded unmodified with values and without: the same steps, the same operators."""

import textwrap
import warnings
from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from neuronprof.capture.script import CaptureOptions, record_script  # noqa: E402

GRADIENT_ACCUMULATION = """
# language model: data file in the working folder, accumulation, mixed precision, evaluation, checkpoints
import contextlib, math, os
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
device = 'cuda' if torch.cuda.is_available() else 'cpu'
np.arange(4000, dtype=np.uint16).__mod__(64).tofile('train.bin')
ddp = int(os.environ.get('RANK', -1)) != -1
context = contextlib.nullcontext() if device == 'cpu' else torch.amp.autocast(device_type=device, dtype=torch.bfloat16)
def get_batch():
    data = np.memmap('train.bin', dtype=np.uint16, mode='r')
    ix = torch.randint(len(data) - 16, (4,))
    x = torch.stack([torch.from_numpy(data[i : i + 16].astype(np.int64)) for i in ix])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 17].astype(np.int64)) for i in ix])
    return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe, self.head = nn.Embedding(64, 128), nn.Embedding(16, 128), nn.Linear(128, 64, bias=False)
        self.block = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True, dropout=0.0)
        self.head.weight = self.wte.weight
    def forward(self, idx, targets=None):
        x = self.block(self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device)))
        logits = self.head(x)
        return logits, None if targets is None else F.cross_entropy(logits.view(-1, 64), targets.view(-1))
model = torch.compile(LM().to(device))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
scaler = torch.amp.GradScaler('cuda', enabled=False)
for it in range(5):
    for group in optimizer.param_groups:
        group['lr'] = 1e-3 * math.cos(it / 10)
    if it % 2 == 0:
        model.eval()
        with torch.no_grad():
            losses = torch.zeros(2)
            for k in range(2):
                with context:
                    losses[k] = model(*get_batch())[1].item()
        model.train()
        print(f'loss {losses.mean():.4f}')
        torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, 'last.pt')
    for micro in range(2):
        x, y = get_batch()
        with context:
            loss = model(x, y)[1] / 2
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer); scaler.update(); optimizer.zero_grad(set_to_none=True)
model.load_state_dict(torch.load('last.pt', map_location=device)['model'])
"""

EXAMPLE_MAIN = """
# the shape of PyTorch's own examples: argparse, current_accelerator, DataLoader workers, train and test loops, a scheduler
import argparse, torch
from torch import nn, optim
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR
class Data(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, i): return torch.full((1, 12, 12), i / 64), i % 10
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dropout, self.fc = nn.Conv2d(1, 32, 3), nn.Dropout(0.25), nn.Linear(800, 10)
    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return F.log_softmax(self.fc(self.dropout(torch.flatten(x, 1))), dim=1)
def train(model, device, loader, optimizer):
    model.train()
    for data, target in loader:
        data, target = data.to(device), target.to(device)
        optimizer.zero_grad()
        F.nll_loss(model(data), target).backward()
        optimizer.step()
def test(model, device, loader):
    model.eval()
    correct = 0
    with torch.no_grad():
        for data, target in loader:
            data, target = data.to(device), target.to(device)
            correct += model(data).argmax(dim=1, keepdim=True).eq(target.view(-1, 1)).sum().item()
    print(f'{correct}/{len(loader.dataset)}')
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--no-accel', action='store_true')
    args = parser.parse_args()
    use_accel = not args.no_accel and torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if use_accel else torch.device('cpu')
    options = {'num_workers': 1, 'persistent_workers': True, 'pin_memory': True, 'shuffle': True} if use_accel else {}
    loader = torch.utils.data.DataLoader(Data(), batch_size=16, **options)
    model = Net().to(device)
    optimizer = optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
    for epoch in range(2):
        train(model, device, loader, optimizer)
        test(model, device, loader)
        scheduler.step()
if __name__ == '__main__':
    main()
"""

ADVERSARIAL = """
import torch
from torch import nn
G = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 784)).cuda()
D = nn.Sequential(nn.Linear(784, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)).cuda()
steps_g, steps_d = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
bce = nn.BCEWithLogitsLoss()
for i in range(4):
    real, z = torch.rand(32, 784).cuda(), torch.randn(32, 64, device='cuda')
    ones, zeros = torch.ones(32, 1, device=real.device), torch.zeros(32, 1, device=real.device)
    steps_d.zero_grad()
    (bce(D(real), ones) + bce(D(G(z).detach()), zeros)).backward()
    steps_d.step()
    steps_g.zero_grad()
    bce(D(G(z)), ones).backward()
    steps_g.step()
"""

CLOSURE = """
import torch
model = torch.nn.Linear(100, 100).to('cuda')
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1)
x = torch.ones(8, 100, device='cuda')
for i in range(4):
    def closure():
        optimizer.zero_grad()
        loss = (model(x) - x).pow(2).mean()
        loss.backward()
        return loss
    optimizer.step(closure)
"""

INFERENCE = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10)).eval().to('neuron')
with torch.inference_mode():
    for _ in range(4):
        print(model(torch.ones(8, 100).to('neuron')).argmax(1).cpu().numpy().shape)
"""

MIXED_PRECISION = """
import torch
from torch.utils.checkpoint import checkpoint
class Square(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type='cuda')
    def forward(ctx, x): ctx.save_for_backward(x); return x * x
    @staticmethod
    @torch.amp.custom_bwd(device_type='cuda')
    def backward(ctx, g): return 2 * ctx.saved_tensors[0] * g
model = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.ReLU(inplace=True), torch.nn.Linear(128, 128)).cuda()
optimizer, scaler = torch.optim.Adam(model.parameters()), torch.cuda.amp.GradScaler(init_scale=4.0)
for i in range(4):
    x = torch.randn(8, 128, device='cuda')
    with torch.cuda.amp.autocast():
        h = checkpoint(model, x, use_reentrant=False)
        assert h.is_cuda and h.dtype == torch.float16
        loss = Square.apply(h.float()).mean()
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
"""


def recorded(script, values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = record_script(script, [], CaptureOptions(values=values))
    assert outcome.exit_code == 0
    graph = outcome.recording.graph
    return [
        (s.kind, Counter(graph.signatures[i].name for i in graph.signature[s.start : s.stop]))
        for s in outcome.recording.segments
    ]


@pytest.mark.parametrize(
    ("script", "steps", "transfers"),
    [
        (GRADIENT_ACCUMULATION, 3, {"h2d": 4}),  # two micro-batches of inputs and targets
        (EXAMPLE_MAIN, 3, {"h2d": 2}),
        (ADVERSARIAL, 3, {"h2d": 1}),
        (INFERENCE, 3, {"h2d": 1, "d2h": 1}),
        (MIXED_PRECISION, 3, {}),
    ],
    ids=["gradient-accumulation", "example-main", "adversarial", "inference", "mixed-precision"],
)
def test_kinds_of_scripts(tmp_path, monkeypatch, capsys, script, steps, transfers):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(textwrap.dedent(script))
    real, none = recorded("train.py", "real"), recorded("train.py", "none")
    assert real == none
    training = [names for kind, names in real if kind == "step"]
    assert len(training) == steps
    moved = {direction: training[-1][f"neuronprof.{direction}"] for direction in ("h2d", "d2h")}
    assert {direction: count for direction, count in moved.items() if count} == transfers


@pytest.mark.parametrize("values", ["real", "none"])
def test_an_optimizer_with_a_closure(tmp_path, monkeypatch, capsys, values):
    # What LBFGS does in a step depends on the values, so the two recordings may differ; each step has one forward.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(CLOSURE)
    assert [(kind, names["aten.addmm.default"]) for kind, names in recorded("train.py", values)] == [("step", 1)] * 3
