"""Fine-tuning with libraries that choose the device in the script's place: Transformers' Trainer, PEFT, Accelerate."""

import subprocess
import sys

import neuronprof

LAYERS, WIDTH, RANK = 2, 64, 4
BATCH, POSITIONS, VOCABULARY = 2, 16, 100

FINE_TUNE = f"""
import sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        ids = torch.arange({POSITIONS}) % {VOCABULARY}
        return {{"input_ids": ids, "labels": ids}}

model = LlamaForCausalLM(LlamaConfig(
    hidden_size={WIDTH}, intermediate_size=128, num_hidden_layers={LAYERS}, num_attention_heads=4, vocab_size={VOCABULARY}))
if "lora" in sys.argv:
    model = get_peft_model(model, LoraConfig(r={RANK}, target_modules=["q_proj", "v_proj"]))
arguments = TrainingArguments(
    output_dir="out", per_device_train_batch_size={BATCH}, max_steps=3, bf16=True, report_to=[], save_strategy="no")
print("device", arguments.device)
Trainer(model=model, args=arguments, train_dataset=Data()).train()
"""

ACCELERATE = f"""
import torch
from accelerate import Accelerator

accelerator = Accelerator()
model = torch.nn.Linear({WIDTH}, {WIDTH})
data = torch.utils.data.DataLoader(torch.ones(64, {WIDTH}), batch_size={BATCH})
model, optimizer, data = accelerator.prepare(model, torch.optim.SGD(model.parameters()), data)
for x in data:
    accelerator.backward(model(x).square().mean())
    optimizer.step()
    optimizer.zero_grad()
"""

UNUSED = """
import torch
import torch.distributed as dist

dist.init_process_group()
model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4))).cuda()
model = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
optimizer = torch.optim.SGD(model.parameters())
for _ in range(3):
    model(torch.ones(2, 8, device="cuda")).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def record(folder, script, *arguments, options=()):
    """Runs neuronprof record in a process of its own; returns what it printed and the trace."""
    (folder / "train.py").write_text(script)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "neuronprof",
        "record",
        "--values",
        "none",
        "--steps",
        "1",
        *options,
    ]
    run = subprocess.run([*command, "train.py", *arguments], capture_output=True, text=True, check=False, cwd=folder)
    assert run.returncode == 0, run.stderr
    return run.stdout, neuronprof.load(folder / "trace.parquet")


def test_a_trainer_finds_the_device_and_trains_adapters_alone(tmp_path):
    printed, trace = record(tmp_path, FINE_TUNE, "lora")

    assert "device cuda:0" in printed
    # Two factors of rank RANK beside each of two square projections a layer.
    assert trace.metadata["parameters"] == LAYERS * 2 * 2 * WIDTH * RANK
    operators = trace.operators
    sent = operators[operators["op_name"] == "neuronprof.h2d"]
    assert 8 * BATCH * POSITIONS in sent["bytes"].tolist()
    assert set(operators[operators["op_name"] == "aten.mm"]["dtype"]) == {"bfloat16"}
    assert not operators["source"].str.contains("site-packages").any()


def test_a_trainer_of_several_ranks_reduces_every_gradient(tmp_path):
    _, trace = record(tmp_path, FINE_TUNE, options=["--world-size", "4"])

    events = trace.events
    reduced = events[(events["rank"] == 0) & (events["engine"] == "cc") & (events["phase"] == "backward")]
    # And a flag for each parameter, whether it was used: nine a layer, and embedding, last norm and head.
    assert reduced[reduced["name"] == "AllReduce"]["bytes"].tolist() == [
        4 * trace.metadata["parameters"],
        4 * (9 * LAYERS + 3),
    ]


def test_accelerate_takes_the_batch_to_the_device(tmp_path):
    _, trace = record(tmp_path, ACCELERATE)

    operators = trace.operators
    assert operators[operators["op_name"] == "neuronprof.h2d"]["bytes"].tolist() == [4 * BATCH * WIDTH]
    assert trace.metadata["segments"][0]["model_flops"] == 2 * 2 * BATCH * WIDTH * WIDTH


def test_flags_of_unused_parameters_are_on_the_host(tmp_path):
    _, trace = record(tmp_path, UNUSED, options=["--world-size", "4"])

    assert "aten._local_scalar_dense" not in set(trace.operators["op_name"])
