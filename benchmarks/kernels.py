"""Single operators on one logical NeuronCore of Trainium2, beside what a third party measured there.

    python benchmarks/kernels.py

Measured: xpu-perf (whn09), vendor operators on trn2.3xlarge, August and September 2026, one logical core of two physical ones, run
eagerly. Each operator is recorded as a step of its own, through the ordinary path. Where the ratio is far from one, the software that was
measured and ours do different work: its GELU takes several passes where the scalar engine has a table for it, its RMSNorm is one fused
kernel where PyTorch's decomposition makes three passes on the vector engine.
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import neuronprof

N = 8192

# name, what runs, what it is measured in, measured, and FLOPs or bytes of one run
CASES = (
    ("gemm bf16", lambda t: t["square"] @ t["square"], "TFLOP/s", 151.0, 2 * N**3),
    ("gemm fp32", lambda t: t["small"] @ t["small"], "TFLOP/s", 37.7, 2 * 2048**3),
    ("gemm bf16 1024 x 4096 x 4096", lambda t: t["wide"] @ t["weight"], "us", 276.8, 0),
    ("add", lambda t: t["square"] + t["other"], "GB/s", 600.0, 3 * 2 * N * N),
    ("sum over rows", lambda t: t["square"].sum(-1), "GB/s", 639.0, 2 * N * N),
    ("softmax", lambda t: torch.softmax(t["square"], -1), "GB/s", 496.0, 2 * 2 * N * N),
    ("rms_norm", lambda t: F.rms_norm(t["square"], (N,)), "GB/s", 409.0, 2 * 2 * N * N),
    ("layer_norm", lambda t: F.layer_norm(t["square"], (N,)), "GB/s", 259.0, 2 * 2 * N * N),
    ("silu", lambda t: F.silu(t["square"]), "GB/s", 587.0, 2 * 2 * N * N),
    ("gelu (erf)", lambda t: F.gelu(t["square"]), "GB/s", 84.0, 2 * 2 * N * N),
)


def simulated() -> list[float]:
    """Seconds of each case."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.parquet"
        with (
            neuronprof.recording(path, chip="trainium2", values="none", warmup=0, steps=len(CASES), quiet=True),
            torch.no_grad(),
        ):
            tensors = {
                "square": torch.randn(N, N).bfloat16(),
                "other": torch.randn(N, N).bfloat16(),
                "small": torch.randn(2048, 2048),
                "wide": torch.randn(1024, 4096).bfloat16(),
                "weight": torch.randn(4096, 4096).bfloat16(),
            }
            neuronprof.step()
            kept = []
            for _, run, *_ in CASES:
                kept.append(run(tensors))
                neuronprof.step()
        segments = neuronprof.load(path).metadata["segments"]
    return [(s["end_ts"] - s["start_ts"]) / 1e9 for s in segments if s["kind"] == "step"]


def main() -> None:
    """Prints the table."""
    print(f"{'operator':30} {'simulated':>10} {'measured':>10}  unit     ratio")
    for (name, _, unit, measured, amount), seconds in zip(CASES, simulated(), strict=True):
        ours = seconds * 1e6 if unit == "us" else amount / seconds / (1e12 if unit == "TFLOP/s" else 1e9)
        print(f"{name:30} {ours:10.1f} {measured:10.1f}  {unit:7} {ours / measured:6.2f}")


if __name__ == "__main__":
    main()
