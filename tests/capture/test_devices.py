"""A script that asks for cuda, neuron or xla sees such a device; what PyTorch computes on stays the CPU."""

import textwrap
import warnings

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from neuronprof.capture.script import CaptureOptions, record_script  # noqa: E402

STEP = """
w = torch.nn.Linear(2, 2)
w(torch.ones(1, 2)).sum().backward()
"""


@pytest.fixture
def prints(tmp_path, monkeypatch, capsys):
    """What a script prints while it is recorded, line by line."""
    monkeypatch.chdir(tmp_path)

    def prints(text, values="real"):
        (tmp_path / "train.py").write_text("import torch\n" + textwrap.dedent(text) + STEP)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = record_script("train.py", [], CaptureOptions(values=values))
        shown = capsys.readouterr()
        assert outcome.exit_code == 0, shown.err
        return shown.out.splitlines()

    return prints


@pytest.fixture
def transfers(tmp_path, monkeypatch):
    """Direction and bytes of each copy between host and device in the one recorded step."""
    monkeypatch.chdir(tmp_path)

    def transfers(text):
        (tmp_path / "train.py").write_text("import torch\n" + textwrap.dedent(text))
        graph = record_script("train.py", [], CaptureOptions(values="real", steps=1)).recording.graph
        found = [graph.signatures[i] for i in graph.signature if graph.signatures[i].name.startswith("neuronprof.")]
        return [(s.name.partition(".")[2], (s.inputs + s.outputs)[0].nbytes) for s in found]

    return transfers


@pytest.mark.parametrize("values", ["real", "none"])
@pytest.mark.parametrize("kind", ["cuda", "neuron", "xla"])
def test_every_way_to_a_device(prints, kind, values):
    lines = prints(
        f"""
        d = torch.device("{kind}")
        x = torch.ones(100, 100)
        y = x.to(d)
        for t in (
            x, y, x.to("{kind}"), x.to(device="{kind}:0"), x.to(d, torch.float16), x.to(y), y * 2, y.t()[3], y.detach(), y.float(),
            y.half(), torch.zeros(3, device=d), torch.zeros_like(y), y.new_ones(2), torch.tensor([1.0], device=y.device), torch.cat([y, y]),
            torch.nn.Linear(2, 2).to(d).weight, torch.nn.Linear(2, 2, device=d).bias, torch.zeros_like(x), y.cpu(), y.to("cpu"),
            y.cpu() + 1,
        ):
            print(t.device)
        """,
        values,
    )
    assert lines == ["cpu"] + [f"{kind}:0"] * 17 + ["cpu"] * 4


def test_what_a_tensor_says_of_its_device(prints):
    lines = prints(
        """
        x, y = torch.ones(2), torch.ones(2).cuda()
        print(x.is_cuda, y.is_cuda, y.is_cpu, x.get_device(), y.get_device(), y.type())
        print(y.device == torch.device("cuda", 0), y.device == x.device, y.device.type, y.device.index)
        print(y.cuda() is y, y.to("cuda") is y, x.cuda() is x, x.cpu() is x)
        """
    )
    assert lines == ["False True False -1 0 torch.cuda.FloatTensor", "True False cuda 0", "True True False True"]


def test_old_names_and_prints(prints):
    lines = prints(
        """
        x = torch.cuda.FloatTensor([1, 2])
        print(isinstance(x, torch.cuda.FloatTensor), isinstance(x.cpu(), torch.cuda.FloatTensor), x.type(torch.cuda.LongTensor).dtype)
        print(x, x.cpu(), x.half())
        """
    )
    assert lines == [
        "True False torch.int64",
        "tensor([1., 2.], device='cuda:0') tensor([1., 2.]) tensor([1., 2.], device='cuda:0', dtype=torch.float16)",
    ]


def test_default_device(prints):
    lines = prints(
        """
        with torch.device("cuda"):
            print(torch.ones(2).device, torch.nn.Linear(2, 2).weight.device, torch.ones(2, device="cpu").device)
        print(torch.ones(2).device)
        torch.set_default_device("neuron")
        print(torch.ones(2).device, torch.get_default_device())
        torch.set_default_device("cpu")
        print(torch.ones(2).device)
        """
    )
    assert lines == ["cuda:0 cuda:0 cpu", "cpu", "neuron:0 neuron:0", "cpu"]


def test_a_copy_on_the_device_is_a_copy(prints):
    lines = prints(
        """
        host = torch.ones(3)
        device = host.cuda()
        host.zero_()
        back = device.cpu()
        device.zero_()
        print(host.tolist(), device.tolist(), back.tolist())
        leaf = torch.ones(2, requires_grad=True)
        (leaf.cuda() * 3).sum().backward()
        print(leaf.grad.tolist(), leaf.grad.device)
        """
    )
    assert lines == ["[0.0, 0.0, 0.0] [0.0, 0.0, 0.0] [1.0, 1.0, 1.0]", "[3.0, 3.0] cpu"]


def test_autocast_has_the_default_dtype_of_the_device(prints):
    lines = prints(
        """
        x = torch.ones(4, 4, device="cuda")
        for kind, options in (("cuda", {}), ("neuron", {}), ("xla", {}), ("cuda", {"dtype": torch.bfloat16}), ("cuda", {"enabled": False})):
            with torch.autocast(kind, **options):
                print((x @ x).dtype, torch.is_autocast_enabled(kind))
        with torch.cuda.amp.autocast():
            print((x @ x).dtype)
        scaler = torch.cuda.amp.GradScaler()
        print(scaler.is_enabled(), torch.amp.GradScaler("cuda").get_scale(), torch.get_autocast_dtype("neuron"))
        """
    )
    assert lines == [
        "torch.float16 True", "torch.bfloat16 True", "torch.bfloat16 True", "torch.bfloat16 True", "torch.float32 False", "torch.float16",
        "True 65536.0 torch.bfloat16",
    ]  # fmt: skip


def test_the_device_module_of_cuda(prints):
    lines = prints(
        """
        print(torch.cuda.is_available(), torch.cuda.device_count(), torch.cuda.get_device_name(0), torch.cuda.current_device())
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(); end.record(); torch.cuda.synchronize()
        print(type(start.elapsed_time(end)).__name__, torch.cuda.max_memory_allocated() >= 0, torch.cuda.mem_get_info()[1] > 2**30)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            y = torch.ones(2, device="cuda")
        torch.cuda.current_stream().wait_stream(stream); y.record_stream(stream)
        generator = torch.Generator(device="cuda").manual_seed(1)
        print(generator.device, torch.randn(2, generator=generator, device="cuda").device, isinstance(generator, torch.Generator))
        print(torch.cuda.is_available.__name__, torch.cuda.get_device_properties(0).name, torch.cuda.is_bf16_supported())
        torch.cuda.manual_seed_all(0); torch.backends.cudnn.benchmark = True; torch.backends.cuda.matmul.allow_tf32 = False
        """
    )
    assert lines == [
        "True 1 AWS Trainium4 (simulated) 0",
        "float True True",
        "cuda:0 cuda:0 True",
        "is_available AWS Trainium4 (simulated) True",
    ]


def test_the_accelerator_is_neuron(prints):
    assert prints(
        """
        device = torch.accelerator.current_accelerator()
        print(torch.accelerator.is_available(), device, torch.ones(2, device=device).device, torch.neuron.is_available())
        torch.accelerator.synchronize(); torch.neuron.synchronize()
        """
    ) == ["True neuron neuron:0 True"]


def test_libraries_see_a_machine_without_accelerator(prints):
    import torch.utils.collect_env  # a library that asks, as transformers or accelerate would

    assert prints(
        """
        import torch.nn.parallel
        model = torch.nn.DataParallel(torch.nn.Linear(2, 2).cuda())
        print(model.device_ids, model(torch.ones(1, 2).cuda()).device)
        """
    ) == ["[] cuda:0"]
    assert not torch.cuda.is_available()


def test_checkpoints_load_onto_the_device(prints):
    assert prints(
        """
        torch.save({"x": torch.ones(2, device="cuda")}, "x.pt")
        places = "cpu", "cuda", torch.device("cuda"), {"cuda:0": "cpu"}
        print([torch.load("x.pt", map_location=where)["x"].device.type for where in places])
        """
    ) == ["['cpu', 'cuda', 'cuda', 'cpu']"]


def test_transfers_of_a_step(transfers):
    # A batch of 8 x 4 floats and 8 int64 goes up: 128 and 64 bytes. The loss and the 8 x 2 logits come back: 4 and 64.
    # To move what is there already is no transfer.
    assert transfers(
        """
        model = torch.nn.Linear(4, 2).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            x, y = torch.ones(8, 4), torch.zeros(8, dtype=torch.long)
            x, y = x.cuda(non_blocking=True), y.to("cuda")
            logits = model(x.to("cuda"))
            loss = torch.nn.functional.cross_entropy(logits, y.cuda())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            loss.detach().cpu(), logits.detach().to("cpu")
            optimizer.step()
        """
    ) == [("h2d", 128), ("h2d", 64), ("d2h", 4), ("d2h", 64)]


def test_loaders_and_jit_and_capturable_optimizers_work(prints):
    assert prints(
        """
        class Data(torch.utils.data.Dataset):
            def __len__(self): return 4
            def __getitem__(self, i): return torch.ones(3), i
        model = torch.nn.Linear(3, 3).cuda()
        optimizer = torch.optim.Adam(model.parameters(), capturable=True)
        for x, i in torch.utils.data.DataLoader(Data(), batch_size=2, pin_memory=True):
            print(x.device, i.device, x.pin_memory().cuda(non_blocking=True).device)
            model(x.cuda()).sum().backward(); optimizer.step()
        @torch.jit.script
        def padded(x):
            return torch.cat([x, torch.zeros(2)])
        print(padded(torch.ones(2)).tolist())
        """
    ) == ["cpu cpu cuda:0", "cpu cpu cuda:0", "[1.0, 1.0, 0.0, 0.0]"]
