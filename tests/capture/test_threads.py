"""Threads that a script starts: their operators are recorded like those of its main thread."""

import threading
from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from neuronprof.capture.script import CaptureOptions, record_script  # noqa: E402

TOWERS = """
import threading
from concurrent.futures import ThreadPoolExecutor
import torch
from torch import nn
torch.manual_seed(0)
class Tower(nn.Sequential):
    pass
def tower():
    return Tower(nn.Linear(100, 120), nn.GELU(), nn.LayerNorm(120), nn.Linear(120, 50)).to(DEVICE)
class Deep(Tower):
    pass
left, right = tower(), Deep(nn.Linear(80, 50), nn.ReLU(), nn.Linear(50, 50)).to(DEVICE)
optimizer = torch.optim.AdamW([*left.parameters(), *right.parameters()])
pool = ThreadPoolExecutor(2)
def in_turn(calls):
    return [call() for call in calls]
def in_threads(calls):
    made = [None] * len(calls)
    def run(i):
        made[i] = calls[i]()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made
def in_pool(calls):
    return [future.result() for future in [pool.submit(call) for call in calls]]
for _ in range(3):
    x, y = torch.ones(64, 100, device=DEVICE), torch.ones(64, 80, device=DEVICE)
    a, b = RUN([lambda: left(x), lambda: right(y)])
    (a * b).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
print(left[0].weight.sum().item() if VALUES else 0)
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(text, values, **names):
        for name, value in names.items():
            text = text.replace(name, value)
        (tmp_path / "train.py").write_text(text)
        outcome = record_script("train.py", [], CaptureOptions(values=values, warmup=1, steps=2, stop=False))
        shown = capsys.readouterr()
        assert outcome.exit_code == 0, shown.err
        return outcome.recording, shown

    return run


def operators(recording):
    """How often each operator occurs: with its layouts, phase, module, and the module and name of its forward operator."""
    graph = recording.graph

    def name(op):
        return graph.signatures[graph.signature[op]].name, graph.modules[graph.module[op]]

    return Counter(
        (name(op), graph.signatures[graph.signature[op]], int(graph.phase[op]), name(f) if (f := graph.forward[op]) >= 0 else None)
        for op in range(len(graph))
    )  # fmt: skip


@pytest.mark.parametrize("values", ["real", "none"])
@pytest.mark.parametrize("device", ["'cuda'", "'cpu'"])
@pytest.mark.parametrize("way", ["in_threads", "in_pool"])
def test_two_towers_in_two_threads(run, values, device, way):
    names = {"DEVICE": device, "VALUES": str(values == "real")}
    expected, value = run(TOWERS, values, RUN="in_turn", **names)
    found, shown = run(TOWERS, values, RUN=way, **names)
    assert operators(found) == operators(expected)
    assert shown.out == value.out


def test_it_never_breaks(run):
    expected, _ = run(TOWERS, "real", DEVICE="'cuda'", VALUES="True", RUN="in_turn")
    for number in range(20):
        found, _ = run(TOWERS, "none" if number % 2 else "real", DEVICE="'cuda'", VALUES="True", RUN="in_threads")
        assert operators(found) == operators(expected)


PREFETCH = """
import queue, threading
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
model = nn.Linear(100, 10).to('cuda')
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
batches = queue.Queue(maxsize=2)
loader = DataLoader(TensorDataset(torch.ones(64, 100)), batch_size=16)
def prepare():
    for (x,) in loader:
        batches.put((x * 2).sin().add_(1))
    batches.put(None)
thread = threading.Thread(target=prepare, daemon=True)
if THREADED:
    thread.start()
    made = iter(batches.get, None)
else:
    made = ((x * 2).sin().add_(1) for (x,) in loader)
for x in made:
    model(x.to('cuda')).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.parametrize("values", ["real", "none"])
def test_a_thread_that_prepares_data_is_the_host(run, values):
    found, _ = run(PREFETCH, values, THREADED="True")
    assert not any("sin" in s.name for s in found.graph.signatures)
    assert operators(found) == operators(run(PREFETCH, values, THREADED="False")[0])


WRONG = """
def wrong():
    raise ValueError("mine")
threading.excepthook = lambda failed: print(failed.exc_type.__name__, failed.exc_value)
thread = threading.Thread(target=wrong)
thread.start()
thread.join()
print(pool.submit(wrong).exception())
"""


def test_an_error_in_a_thread_is_the_threads(run, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # the script sets its own
    _, shown = run(TOWERS + WRONG, "real", DEVICE="'cuda'", VALUES="False", RUN="in_pool")
    assert shown.out == "0\nValueError mine\nmine\n"
