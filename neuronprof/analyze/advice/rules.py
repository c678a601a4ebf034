"""The rules there are."""

from neuronprof.analyze.advice import communication, compute, host, ranks
from neuronprof.analyze.advice.rule import Rule

RULES: tuple[Rule, ...] = (
    host.HostSync(),
    host.InputCopies(),
    compute.Float32Products(),
    compute.UnshardedOptimizer(),
    communication.LateGradientSync(),
    communication.SmallCollectives(),
    communication.SyncEveryMicrobatch(),
    ranks.SlowChip(),
    ranks.ThrottledCore(),
    ranks.SlowMemory(),
    ranks.LateHost(),
    ranks.UnevenWork(),
)
