"""The rules there are."""

from neuronprof.analyze.advice import communication, compute, host, memory, onchip, pipeline, ranks
from neuronprof.analyze.advice.rule import Rule

RULES: tuple[Rule, ...] = (
    host.HostSync(),
    host.InputCopies(),
    host.LaunchBound(),
    compute.Float32Products(),
    compute.PoorFill(),
    compute.UnshardedOptimizer(),
    memory.UnfusedAttention(),
    memory.LayoutCopies(),
    memory.RecomputeWithRoom(),
    onchip.Spills(),
    onchip.SbufReuse(),
    onchip.SmallTransfers(),
    communication.LateGradientSync(),
    communication.SmallCollectives(),
    communication.SyncEveryMicrobatch(),
    communication.ExposedWeightGather(),
    communication.TensorParallelFar(),
    pipeline.PipelineBubble(),
    pipeline.StageImbalance(),
    ranks.SlowChip(),
    ranks.ThrottledCore(),
    ranks.SlowMemory(),
    ranks.DegradedLink(),
    ranks.LateHost(),
    ranks.UnevenWork(),
)
