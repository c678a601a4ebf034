"""Which rank of a script that distributes itself is recorded, and what only that one does."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from neuronprof.capture.script import CaptureOptions, record_script  # noqa: E402

SCRIPT = """
import torch, torch.distributed as dist
from torch import nn
dist.init_process_group("nccl")
model = nn.parallel.DistributedDataParallel(nn.Linear(8, 8).cuda())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    loss = model(torch.randn(4, 8, device="cuda")).sum()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    if dist.get_rank() == 0:
        print(loss.item())
"""


@pytest.mark.parametrize(("rank", "waits", "told"), [(0, 1, 1), (5, 0, 0)])
def test_what_only_the_first_rank_does_is_in_its_recording_alone_and_told(rank, waits, told, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    recording = record_script(str(script), [], CaptureOptions(steps=1, world_size=16, rank=rank)).recording

    step = recording.segments[-1]
    graph = recording.graph.slice(step.start, step.stop)
    names = [graph.signatures[s].name for s in graph.signature.tolist()]
    assert names.count("aten._local_scalar_dense.default") == waits
    assert {call.group.text(rank) for call in graph.collectives.values()} == {"dp:0-15"}
    assert sum("only rank 0" in note for note in recording.notes) == told
