"""A recorded script must not notice: same prints, same errors, same exit code; and its steps are kept however it ends."""

import io
import signal
import subprocess
import sys
import textwrap
import warnings

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from neuronprof.capture import devicename  # noqa: E402
from neuronprof.capture.script import CaptureOptions, record_script  # noqa: E402
from neuronprof.errors import NeuronprofError  # noqa: E402

MODEL = """
import torch
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def step():
    optimizer.zero_grad()
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
"""


@pytest.fixture(autouse=True)
def _python_shows_warnings_once():
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Records a script given as text, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(text, *argv, name="train.py", **options):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return record_script(name, list(argv), CaptureOptions(**{"values": "real", **options}))

    return run


def steps(outcome):
    """Operators of each recorded training step."""
    return [s.stop - s.start for s in outcome.recording.segments if s.kind == "step"]


# ---- as __main__


def test_the_script_is_main(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Ada\n"))
    (tmp_path / "beside.py").write_text("WORD = 'found'")
    run(
        MODEL
        + """
import sys, pathlib, pickle, beside
class Point: pass
print(__name__, __file__, sys.argv, sys.path[0], beside.WORD)
print(sys.modules['__main__'].Point is Point, type(pickle.loads(pickle.dumps(Point()))) is Point)
print(pathlib.Path('beside.py').read_text(), input('name? '))
for _ in range(2): step()
""",
        "--lr",
        "0.1",
    )
    assert capsys.readouterr().out == (
        f"__main__ {tmp_path}/train.py ['train.py', '--lr', '0.1'] {tmp_path} found\n"
        "True True\n"
        "name? WORD = 'found' Ada\n"
    )


def test_a_module_runs_as_python_minus_m_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "__init__.py").write_text("")
    (tmp_path / "job" / "sizes.py").write_text("N = 3")
    (tmp_path / "job" / "__main__.py").write_text(
        "from job.sizes import N\nfrom . import sizes\nimport sys\nprint(__name__, __package__, N, sys.argv[1:])\n"
        + MODEL
        + "\nfor _ in range(N): step()"
    )
    outcome = record_script("job", ["a"], CaptureOptions(values="real", module=True))
    assert capsys.readouterr().out == "__main__ job 3 ['a']\n"
    assert len(steps(outcome)) == 2


def test_everything_is_put_back(run):
    devicename.register()  # the one thing that stays
    before = (
        sys.argv[:], sys.path[:], sys.modules["__main__"], sys.excepthook, list(sys.meta_path), signal.getsignal(signal.SIGTERM),
        dict(vars(torch)), dict(vars(torch.Tensor)), dict(vars(torch.cuda)), dict(vars(torch.nn.Module)), dict(vars(torch.accelerator)),
        torch.Generator, torch.get_default_device(), torch.get_default_dtype(), torch.is_grad_enabled(),
    )  # fmt: skip
    run(
        MODEL
        + """
import torch_neuronx, sys
torch.set_default_device('cuda'); torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)
torch.set_grad_enabled(True)
sys.excepthook = print
torch.set_grad_enabled(False)
"""
        + "with torch.enable_grad():\n    model.double(); optimizer.zero_grad(); model(torch.ones(3, 4)).sum().backward(); optimizer.step()"
    )
    assert before == (
        sys.argv[:], sys.path[:], sys.modules["__main__"], sys.excepthook, list(sys.meta_path), signal.getsignal(signal.SIGTERM),
        dict(vars(torch)), dict(vars(torch.Tensor)), dict(vars(torch.cuda)), dict(vars(torch.nn.Module)), dict(vars(torch.accelerator)),
        torch.Generator, torch.get_default_device(), torch.get_default_dtype(), torch.is_grad_enabled(),
    )  # fmt: skip
    assert "torch_neuronx" not in sys.modules


def test_exit_handlers_see_the_simulated_device_last_first(run, capsys):
    run(
        MODEL
        + """
import atexit
x = torch.ones(2, device='cuda')
atexit.register(print, 'first registered')
@atexit.register
def last(): print(x.device)
step()
print('end')
"""
    )
    assert capsys.readouterr().out == "end\ncuda:0\nfirst registered\n"


# ---- how it ends


@pytest.mark.parametrize(
    ("ending", "code", "by", "err"),
    [
        ("", 0, "end", ""),
        ("import sys; sys.exit()", 0, "exit", ""),
        ("import sys; sys.exit(3)", 3, "exit", ""),
        ("import sys; sys.exit('no data')", 1, "exit", "no data\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143, "terminated", ""),
    ],
)
def test_exit_codes(run, capfd, ending, code, by, err):
    outcome = run(MODEL + "step(); step()\n" + ending)
    assert (outcome.exit_code, outcome.ended_by, len(steps(outcome))) == (code, by, 1)
    assert capfd.readouterr().err == err


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (MODEL + "step(); step()\nmodel(torch.ones(3, 5))", 1),
        (
            "def f():\n    try:\n        1 / 0\n    except ZeroDivisionError as e:\n        raise ValueError('no') from e\nf()",
            1,
        ),
        ("import nothing_of_that_name", 1),
        ("x = 1\n  y = 2", 1),
        (
            "import sys\nsys.excepthook = lambda kind, value, trace: sys.stderr.write(f'hook {value}')\nraise ValueError('no')",
            1,
        ),
        (MODEL + "step()\nraise KeyboardInterrupt", 130),
    ],
    ids=["operator", "chained", "import", "syntax", "own-hook", "ctrl-c"],
)
def test_errors_are_shown_as_python_shows_them(run, capfd, tmp_path, text, code):
    outcome = run(text)
    shown = capfd.readouterr().err
    plain = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True)
    assert shown == plain.stderr
    assert outcome.exit_code == code


def test_a_file_that_is_not_python(run, capfd, tmp_path):
    outcome = run("\x7fELF\x00\x01")
    assert (outcome.recording, outcome.exit_code) == (None, 1)
    assert capfd.readouterr().err.endswith("SyntaxError: source code string cannot contain null bytes\n")


def test_steps_before_an_error_are_kept(run):
    outcome = run(MODEL + "for i in range(3): step()\nraise ValueError('disk full')", warmup=0)
    assert (outcome.exit_code, outcome.ended_by) == (1, "error")
    assert len(steps(outcome)) == 3


def test_an_error_before_the_first_step_leaves_no_recording(run):
    outcome = run("raise ValueError('no data')")
    assert (outcome.recording, outcome.exit_code) == (None, 1)


# ---- steps


def test_the_script_runs_on_after_three_steps_and_says_so_once(run, capsys):
    outcome = run(MODEL + "for i in range(7):\n    step(); print(i)")
    shown = capsys.readouterr()
    assert shown.out == "0\n1\n2\n3\n4\n5\n6\n"
    assert shown.err == "neuronprof: recorded 3 steps; the script runs on unrecorded (Ctrl-C ends it)\n"
    assert (outcome.exit_code, outcome.ended_by, len(steps(outcome))) == (0, "end", 3)


def test_a_number_of_steps_stops_the_script_after_them(run, capsys):
    outcome = run(
        MODEL
        + """
try:
    for i in range(100):
        try:
            step()
        except Exception:
            print('swallowed')
        print(i)
finally:
    print('cleaned up')
""",
        steps=2,
    )
    assert capsys.readouterr().out == "0\n1\ncleaned up\n"  # one step of warm-up, then two; the third does not return
    assert (outcome.exit_code, outcome.ended_by, len(steps(outcome))) == (0, "stop", 2)


def test_stop_false_runs_on_after_a_number_of_steps(run, capsys):
    outcome = run(MODEL + "for i in range(4): step()\nprint('end')", steps=1, stop=False)
    assert capsys.readouterr().out == "end\n"
    assert len(steps(outcome)) == 1


# ---- what the user gets wrong


@pytest.mark.parametrize("text", ["", "# nothing\n", "print('no model')", "import torch\ntorch.ones(3) + 1"])
def test_no_training_step_is_one_sentence(run, text):
    with pytest.raises(NeuronprofError, match=r"step"):
        run(text)


def test_a_script_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NeuronprofError, match=r"There is no script trian\.py: check the path"):
        record_script("trian.py", [], CaptureOptions())
    (tmp_path / "folder").mkdir()
    with pytest.raises(NeuronprofError, match="folder is a folder: name the training script inside it"):
        record_script("folder", [], CaptureOptions())
    with pytest.raises(NeuronprofError, match="There is no module no_such that can be run"):
        record_script("no_such", [], CaptureOptions(module=True))


def test_without_torch_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(NeuronprofError, match=r"PyTorch cannot be imported .* pip install 'neuronprof\[torch\]'"):
        run("print(1)")


# ---- processes


def test_workers_of_a_data_loader_are_the_host(run, capsys):
    outcome = run(
        MODEL
        + """
class Data(torch.utils.data.Dataset):
    def __len__(self): return 12
    def __getitem__(self, i): return torch.full((4,), float(i)) * 2
if __name__ == '__main__':
    for batch in torch.utils.data.DataLoader(Data(), batch_size=3, num_workers=2, pin_memory=True):
        optimizer.zero_grad(); model(batch).sum().backward(); optimizer.step(); print(batch[:, 0].tolist())
""",
        warmup=0,
    )
    assert capsys.readouterr().out == "[0.0, 2.0, 4.0]\n[6.0, 8.0, 10.0]\n[12.0, 14.0, 16.0]\n[18.0, 20.0, 22.0]\n"
    graph = outcome.recording.graph
    assert "aten.stack.default" not in {graph.signatures[i].name for i in graph.signature}


def test_a_group_of_one_process_is_this_one(run, capsys):
    outcome = run(
        MODEL
        + """
import torch.distributed as dist, torch.multiprocessing as mp
def worker(rank, word):
    dist.init_process_group('nccl', rank=rank, world_size=1)
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    for _ in range(2): step()
    print(word, rank, dist.get_world_size())
    dist.destroy_process_group()
mp.spawn(worker, args=('rank',), nprocs=1)
"""
    )
    assert capsys.readouterr().out == "rank 0 1\n"
    assert len(steps(outcome)) == 1
