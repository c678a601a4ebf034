"""Whether a program fits into HBM, and what would make it fit."""

from math import ceil

from neuronprof import units
from neuronprof.errors import NeuronprofError
from neuronprof.program import Program
from neuronprof.terms import ROLES, Role

_SHARDED = (Role.WEIGHTS, Role.GRADIENTS, Role.OPTIMIZER_STATE)


def peak_levels(program: Program) -> dict[str, int]:
    """Bytes of each category when HBM is fullest, in program order."""
    held = dict.fromkeys(ROLES, 0)
    peak, most = dict(held), 0
    for _, role, level in program.memory.tolist():
        held[ROLES[role]] = level
        if (total := sum(held.values())) > most:
            peak, most = dict(held), total
    return {str(role): nbytes for role, nbytes in peak.items()}


def check_fit(levels: dict[str, int], capacity: int, chip: str) -> None:
    """Refuses what needs more HBM than a rank has. levels: bytes of each category when it is fullest.

    Raises:
        NeuronprofError: by how much it does not fit, and what would make it fit.
    """
    need = sum(levels.values())
    if need <= capacity:
        return
    kept = sum(levels[r] for r in _SHARDED)
    rest = need - kept
    held = ", ".join(f"{name} {units.size(b)}" for name, b in sorted(levels.items(), key=lambda i: -i[1]) if b)
    if kept >= capacity:
        ranks = ceil(kept / (0.8 * capacity))
        advice = f"weights, gradients and optimizer state alone are too much: shard them over at least {ranks} ranks"
    else:
        share = (capacity - kept) / rest
        advice = f"a batch {share:.0%} as large would fit, or activation checkpointing"
    raise NeuronprofError(
        f"The step needs {units.size(need)} of HBM and a rank of {chip} has {units.size(capacity)}, {units.size(need - capacity)} too "
        f"little ({held}); {advice}; --allow-oom simulates it all the same."
    )
