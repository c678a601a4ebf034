"""Training as neuronx_distributed's own scripts do it: configuration, model and optimizer that follow it, ZeRO 1."""

import subprocess
import sys

import neuronprof

LAYERS, WIDTH, HEADS, KEYS = 2, 64, 4, 2
BATCH, POSITIONS, VOCABULARY = 2, 32, 128
TENSOR, RANKS = 2, 8
REPLICAS = RANKS // TENSOR

SCRIPT = f"""
import sys
import torch
import torch_xla.core.xla_model as xm
import neuronx_distributed as nxd
from neuronx_distributed.kernels.flash_attn import nki_flash_attn_func
from neuronx_distributed.modules.qkv_linear import GQAQKVColumnParallelLinear
from neuronx_distributed.parallel_layers import parallel_state
from neuronx_distributed.parallel_layers.layers import ColumnParallelLinear, ParallelEmbedding, RowParallelLinear
from neuronx_distributed.parallel_layers.loss_functions import parallel_cross_entropy
from neuronx_distributed.utils.adamw_fp32_optim_params import AdamW_FP32OptimParams

torch.distributed.init_process_group("xla")
HEAD = {WIDTH} // {HEADS}

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = GQAQKVColumnParallelLinear({WIDTH}, [{WIDTH}, {KEYS} * HEAD], bias=False, gather_output=False, dtype=torch.bfloat16)
        self.out = RowParallelLinear({WIDTH}, {WIDTH}, bias=False, input_is_parallel=True, dtype=torch.bfloat16)

    def forward(self, x):
        heads = lambda t: t.view({BATCH}, {POSITIONS}, -1, HEAD).transpose(1, 2)
        q, k, v = map(heads, self.qkv(x))
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        mixed = nki_flash_attn_func(q, k, v, transpose_nki_inputs=False)
        return x + self.out(mixed.transpose(1, 2).reshape({BATCH}, {POSITIONS}, -1))

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = ParallelEmbedding({VOCABULARY}, {WIDTH}, dtype=torch.bfloat16)
        self.blocks = torch.nn.ModuleList(Block() for _ in range({LAYERS}))
        self.head = ColumnParallelLinear({WIDTH}, {VOCABULARY}, bias=False, gather_output=False, dtype=torch.bfloat16)

    def forward(self, ids):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return parallel_cross_entropy(self.head(x).float(), ids).mean()

config = nxd.neuronx_distributed_config(
    tensor_parallel_size={TENSOR},
    optimizer_config={{"zero_one_enabled": "zero" in sys.argv, "grad_clipping": True, "max_grad_norm": 1.0}},
    activation_checkpoint_config=Block if "again" in sys.argv else None,
)
model = nxd.initialize_parallel_model(config, Model)
optimizer = nxd.initialize_parallel_optimizer(config, AdamW_FP32OptimParams, model.parameters(), lr=1e-3)
assert parallel_state.get_data_parallel_size() == {REPLICAS}
for step in range(3):
    loss = model(torch.zeros({BATCH}, {POSITIONS}, dtype=torch.long, device=xm.xla_device()))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    xm.mark_step()
nxd.save_checkpoint("ckpt", "step_3", model, optimizer, user_content={{"step": 3}})
assert nxd.has_checkpoint("ckpt") and nxd.load_checkpoint("ckpt", "step_3") == {{"step": 3}}
print("norm", optimizer.grad_norm.item())
"""
# What a rank has of a layer's queries, keys and values and of its projection, of the embedding and of the head.
PARAMETERS = (LAYERS * (WIDTH * (WIDTH + 2 * WIDTH // HEADS * KEYS) + WIDTH * WIDTH) + 2 * VOCABULARY * WIDTH) // TENSOR


def record(folder, *arguments):
    """Runs neuronprof record in a process of its own; returns what it printed and the trace."""
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "neuronprof", "record", "--values", "none", "--steps", "1", "--run-on"]
    run = subprocess.run(
        [*command, "--world-size", str(RANKS), "train.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout, neuronprof.load(folder / "trace.parquet")


def along(trace, axis):
    """Collectives of rank 0 along a mesh axis in the optimizer: name and bytes."""
    events = trace.events
    mine = events[
        (events["rank"] == 0) & (events["engine"] == "cc") & (events["phase"] != "forward") & (events["bytes"] > 8)
    ]
    mine = mine[mine["replica_group"].astype(str).str.startswith(f"{axis}:")]
    return mine[["name", "bytes"]].values.tolist()


def test_zero_1_reduces_gradients_in_fp32_and_gathers_weights_in_bf16(tmp_path):
    printed, trace = record(tmp_path, "zero")

    assert "norm " in printed
    assert trace.metadata["mesh"] == {"dp": REPLICAS, "tp": TENSOR}
    # Both move the whole of a rank's model, in one bucket: FP32 on the way in (use_fp32_grad_acc), its own type on the way out.
    assert along(trace, "dp") == [["ReduceScatter", 4 * PARAMETERS], ["AllGather", 2 * PARAMETERS]]
    # An optimizer in FP32 for a replica's part of the weights: two moments, and the part itself beside the weights in their own type.
    at_peak = trace.metadata["memory_fit"]["at_peak"]
    part = 4 * PARAMETERS // REPLICAS
    assert (at_peak["optimizer_state"], at_peak["weights"]) == (2 * part, 2 * PARAMETERS + part)


def test_without_zero_the_gradients_are_averaged_in_one_bucket(tmp_path):
    _, trace = record(tmp_path)

    assert along(trace, "dp") == [["AllReduce", 2 * PARAMETERS]]


def test_blocks_that_are_named_are_computed_again(tmp_path):
    (tmp_path / "again").mkdir()
    (tmp_path / "plain").mkdir()
    _, again = record(tmp_path / "again", "again")
    _, plain = record(tmp_path / "plain")

    assert "recompute" in set(again.operators["phase"])
    assert "recompute" not in set(plain.operators["phase"])
    extra = [s["hardware_flops"] - s["model_flops"] for s in again.metadata["segments"]]
    assert extra == [again.operators.query("phase == 'recompute'")["flops"].sum()]


def test_what_is_not_recorded_of_it_is_one_sentence(tmp_path):
    (tmp_path / "train.py").write_text(
        "import neuronx_distributed as nxd\nnxd.neuronx_distributed_config(pipeline_parallel_size=2)\n"
    )
    command = [sys.executable, "-m", "neuronprof", "record", "--world-size", "8", "train.py"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert run.returncode == 2
    assert "pipeline stages, which are not recorded; leave pipeline_parallel_size at 1" in run.stderr
