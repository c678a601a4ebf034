"""Rows of the ranks table: what every rank did in every step, also those whose events nobody writes."""

from typing import Any

import numpy as np

from neuronprof.program import QUEUE_TRACKS, Queue
from neuronprof.simulate.events import Recorded
from neuronprof.simulate.job import Job
from neuronprof.terms import Engine

_ENGINES = list(dict.fromkeys(e for e, _ in QUEUE_TRACKS.values()))
# Weights are loaded while the PE array works; it is not busy twice.
_QUEUES = {e: [int(q) for q in Queue if QUEUE_TRACKS[q][0] is e and q is not Queue.WEIGHTS] for e in _ENGINES}


def rank_rows(job: Job, recorded: list[Recorded]) -> dict[str, Any]:
    """Columns of trace.schema.RANKS for the training steps; evaluation is left out."""
    steps = [r for r in recorded if r.step >= 0]
    ranks = np.arange(job.world)
    chip, core = np.divmod(ranks, job.ranks_per_chip)
    each = len(steps) * len(_ENGINES)
    busy, peers, end = [], [], []
    for step in steps:
        totals = step.run.totals
        for engine in _ENGINES:
            busy.append(totals.busy[:, _QUEUES[engine]].sum(axis=1))
            peers.append(totals.peers)
            end.append(totals.end)
    return {
        "step": np.repeat(np.array([s.step for s in steps], np.int32), len(_ENGINES) * job.world),
        "rank": np.tile(ranks, each),
        "chip": np.tile(chip, each),
        "core": np.tile(core, each),
        "stage": np.tile(job.stage(ranks), each),
        "engine": (
            np.tile(np.repeat(np.arange(len(_ENGINES), dtype=np.int32), job.world), len(steps)),
            [str(Engine(e)) for e in _ENGINES],
        ),
        "busy_ns": _ns(np.concatenate(busy) if busy else np.zeros(0, np.int64)),
        "wait_peer_ns": _ns(np.concatenate(peers) if peers else np.zeros(0, np.int64)),
        "end_ts": _ns(np.concatenate(end) if end else np.zeros(0, np.int64)),
    }


def _ns(picoseconds: np.ndarray) -> np.ndarray:
    return (picoseconds + 500) // 1000
