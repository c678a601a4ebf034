"""Libraries that exist only beside a Trainium can be imported by a recorded script."""

import sys
import textwrap

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from neuronprof.capture import shims  # noqa: E402
from neuronprof.capture.script import CaptureOptions, record_script  # noqa: E402


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(text, values="real", **options):
        (tmp_path / "train.py").write_text(textwrap.dedent(text))
        return record_script("train.py", [], CaptureOptions(values=values, **options))

    return run


@pytest.mark.parametrize("values", ["real", "none"])
def test_a_traced_model_trains(run, values, capsys):
    outcome = run(
        """
        import torch, torch_neuronx
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(100, 200), torch.nn.ReLU(), torch.nn.Linear(200, 1))
        example_input = torch.ones(4, 100)
        model = torch_neuronx.trace(model, example_input)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        criterion = torch.nn.MSELoss()
        for epoch in range(3):
            optimizer.zero_grad()
            loss = criterion(model(example_input), torch.zeros(4, 1))
            loss.backward()
            optimizer.step()
            print(loss.item())
        """,
        values,
        warmup=0,
    )
    losses = [float(line) for line in capsys.readouterr().out.splitlines()]
    assert losses[0] > losses[1] > losses[2] if values == "real" else losses == [1.0, 1.0, 1.0]
    graph = outcome.recording.graph
    marked = [
        graph.signatures[s].name
        for s, r in zip(graph.signature, graph.region, strict=True)
        if graph.regions[r] == "torch_neuronx.trace"
    ]
    assert marked.count("aten.addmm.default") == 6  # two layers in each of three steps
    assert len([s for s in outcome.recording.segments if s.kind == "step"]) == 3


def test_the_torch_xla_loop(run, capsys):
    run(
        """
        import torch
        import torch_xla
        import torch_xla.core.xla_model as xm
        import torch_xla.runtime as xr
        import torch_xla.distributed.parallel_loader as pl
        import torch_xla.debug.metrics as met
        from torch_xla.amp import autocast
        device = xm.xla_device()
        model = torch.nn.Linear(4, 2).to(device)
        optimizer = torch.optim.AdamW(model.parameters())
        batches = [(torch.ones(3, 4), torch.zeros(3, dtype=torch.long))] * 2
        for x, y in pl.MpDeviceLoader(batches, device):
            with autocast(device):
                loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad(); loss.backward()
            xm.optimizer_step(optimizer)
            xm.mark_step()
            xm.master_print(x.device, model(x).dtype, xr.world_size(), xm.is_master_ordinal(), torch_xla.device())
        """
    )
    assert capsys.readouterr().out == "xla:0 torch.float32 1 True xla:0\n" * 2


def test_parallel_layers_of_one_rank(run):
    outcome = run(
        """
        import torch
        from neuronx_distributed.parallel_layers import parallel_state
        from neuronx_distributed.parallel_layers.layers import ColumnParallelLinear, RowParallelLinear
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=1)
        up = ColumnParallelLinear(4, 8, bias=False, gather_output=False)
        model = torch.nn.Sequential(up, RowParallelLinear(8, 4, input_is_parallel=True))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(torch.ones(2, 4)).sum().backward()
            for p in model.parameters():
                torch.distributed.all_reduce(p.grad, group=parallel_state.get_data_parallel_group())
                p.grad.div_(parallel_state.get_data_parallel_size())
            optimizer.step()
        torch.distributed.destroy_process_group()
        """
    )
    assert outcome.exit_code == 0


def test_parallel_layers_shard_weights_and_exchange_the_sequence(run):
    """Megatron's sequence parallelism over 4 ranks: (2, 8, 16) activations in float32 are 1,024 bytes, gathered and scattered."""
    outcome = run(
        """
        import torch
        from neuronx_distributed.parallel_layers import grads, parallel_state
        from neuronx_distributed.parallel_layers.layers import ColumnParallelLinear, RowParallelLinear
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=4)
        options = dict(bias=False, sequence_parallel_enabled=True, sequence_dimension=1)
        up = ColumnParallelLinear(16, 64, gather_output=False, **options)
        model = torch.nn.Sequential(up, RowParallelLinear(64, 16, input_is_parallel=True, **options))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(torch.ones(2, 2, 16, requires_grad=True)).sum().backward()
            grads.bucket_allreduce_gradients([p.grad for p in model.parameters()])
            optimizer.step()
        """,
        world_size=8,
    )
    assert outcome.recording.axes == {"tp": 4, "dp": 2}
    assert outcome.recording.parameters == 2 * 16 * 64 // 4
    assert [(str(c.kind), c.nbytes, c.axis) for c in outcome.recording.graph.collectives.values()] == [
        ("AllGather", 1024, "tp"),
        ("ReduceScatter", 1024, "tp"),
        ("AllGather", 1024, "tp"),
        ("ReduceScatter", 1024, "tp"),
        ("AllReduce", 2 * 16 * 16 * 4, "dp"),
    ]


def test_xla_ranks_average_their_gradients_in_one_collective(run, capsys):
    outcome = run(
        """
        import torch, torch_xla.core.xla_model as xm, torch_xla.runtime as xr
        import torch_xla.distributed.xla_multiprocessing as xmp
        def work(index):
            model = torch.nn.Linear(4, 2).to(xm.xla_device())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model(torch.ones(3, 4)).sum().backward()
            xm.optimizer_step(optimizer)
            x = torch.ones(8, 4)
            parts = xm.all_gather(x), xm.reduce_scatter("sum", x, 1.0, 0, 8), xm.all_to_all(x, 0, 1, 8)
            print(index, xr.world_size(), [tuple(p.shape) for p in parts], xm.mesh_reduce("loss", 1.0, sum))
        xmp.spawn(work, nprocs=8)
        """
    )
    assert capsys.readouterr().out == "0 8 [(64, 4), (1, 4), (1, 32)] 8.0\n"
    calls = outcome.recording.graph.collectives.values()
    assert [(str(c.kind), c.nbytes, c.ranks) for c in calls] == [("AllReduce", (4 * 2 + 2) * 4, 8)]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "import torch_neuronx; torch_neuronx.warp",
            "AttributeError: torch_neuronx.warp is not simulated by neuronprof",
        ),
        (
            "from torch_xla.core.xla_model import warp",
            "ImportError: cannot import name 'warp' from 'torch_xla.core.xla_model' (<simulated by neuronprof>)",
        ),
        ("import torch_xla.warp", "ModuleNotFoundError: torch_xla.warp is not simulated by neuronprof"),
    ],
)
def test_what_is_not_simulated_says_so(run, capfd, statement, message):
    assert run(statement).exit_code == 1
    assert capfd.readouterr().err.splitlines()[-1] == message


def test_every_shim_loads_and_is_gone_afterwards():
    for library in shims.LIBRARIES:
        names = shims._modules(library)
        assert library in names
        assert all(name.rpartition(".")[0] in names or "." not in name for name in names), "a parent package is missing"
        with shims.importable():
            for name in names:
                __import__(name)
        assert not [name for name in sys.modules if name.partition(".")[0] == library]


def test_an_installed_package_is_not_touched(tmp_path, monkeypatch):
    # torch_xla 0.1, as if installed: its module comes back after the run and its version is its own throughout.
    import importlib.metadata

    (tmp_path / "torch_xla").mkdir()
    (tmp_path / "torch_xla" / "__init__.py").write_text("real = True")
    (tmp_path / "torch_xla-0.1.dist-info").mkdir()
    (tmp_path / "torch_xla-0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch_xla\nVersion: 0.1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import torch_xla

    with shims.importable():
        import torch_xla as simulated

        assert not hasattr(simulated, "real")
        assert importlib.metadata.version("torch_xla") == "0.1"
    assert sys.modules.pop("torch_xla") is torch_xla
