"""Which ranks a trace holds in full."""

import numpy as np

from neuronprof.errors import NeuronprofError

ALL, REPRESENTATIVES = "all", "representatives"


def parse(text: str, world: int) -> list[int]:
    """Ranks from '0,5,17-32', ascending.

    Raises:
        NeuronprofError: what cannot be read, or a rank that the job does not have.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise NeuronprofError(
                f"--trace-ranks {text} cannot be read; write it like 0,5,17-32, or say all or representatives."
            )
        found.update(range(int(first), int(last if dash else first) + 1))
        if max(found) >= world:
            raise NeuronprofError(
                f"--trace-ranks {text} names rank {max(found)}, and the job has ranks 0 to {world - 1}."
            )
    return sorted(found)


def representatives(stage: np.ndarray, waited: np.ndarray) -> dict[int, str]:
    """The ranks that stand for all, with their role: the first of each stage, and the fastest, median and slowest of the job.

    stage: of each rank; waited: how long each waited for its peers, int64[world]: the slowest rank is the one that waits least.
    """
    roles = {int(np.flatnonzero(stage == s)[0]): f"stage {s}" for s in np.unique(stage)[::-1].tolist()}
    if (waited == waited[0]).all():
        return dict(sorted(roles.items()))
    order = np.argsort(waited, kind="stable")
    chosen = {int(order[len(order) // 2]): "median", int(order[-1]): "fastest", int(order[0]): "slowest"}
    return dict(sorted((roles | chosen).items()))
