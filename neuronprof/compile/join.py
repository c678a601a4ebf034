"""Joins the programs of chunks, in the order of a schedule, into the program of a stage."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from neuronprof.program import Opcode, Program, Queue
from neuronprof.terms import ROLES

_STORES = int(Queue.DMA_STORES)
_LOADS = (int(Queue.DMA_WEIGHTS), int(Queue.DMA_ACTIVATIONS))


def join(programs: Sequence[Program], order: Sequence[tuple[int, int]]) -> Program:
    """One program that runs chunks one after another, on queues that go on without a stop between them.

    order: (index in programs, micro-batch; -1 for what runs once). An operator's index counts over the chunks in the order of `programs`.
    What a chunk loads may have been stored by the last one that ran the same micro-batch, and for what runs once by the one before it:
    its loads wait for that one's last store.
    """
    base = np.array([0, *accumulate(len(programs[c]) for c, _ in order)], np.int64)
    first_op = [0, *accumulate(_operators(p) for p in programs)]
    parts = [programs[c] for c, _ in order]
    dtypes: dict[str, int] = {}
    codes = [np.array([dtypes.setdefault(d, len(dtypes)) for d in p.dtypes] or [0], np.int8) for p in programs]
    deps, targets, space = _dependencies(parts, order, base)
    by_target = np.argsort(targets, kind="stable")
    calls = {int(b) + i: call for p, b in zip(parts, base, strict=False) for i, call in p.collectives.items()}
    unknown: dict[str, int] = {}
    for p in programs:
        for name, count in p.unknown.items():
            unknown[name] = unknown.get(name, 0) + count
    return Program(
        opcode=np.concatenate([p.opcode for p in parts]),
        queue=np.concatenate([p.queue for p in parts]),
        op=np.concatenate([np.where(programs[c].op < 0, -1, programs[c].op + first_op[c]) for c, _ in order]).astype(
            np.int32
        ),
        dtype=np.concatenate([codes[c][programs[c].dtype] for c, _ in order]),
        operands=np.concatenate([p.operands for p in parts]),
        nbytes=np.concatenate([p.nbytes for p in parts]),
        flops=np.concatenate([p.flops for p in parts]),
        deps_ptr=np.concatenate([[0], np.cumsum(np.bincount(targets, minlength=int(base[-1])))]).astype(np.int64),
        deps=deps[by_target].astype(np.int32),
        deps_space=space[by_target],
        memory=_levels(parts, base),
        dtypes=tuple(dtypes),
        collectives=calls,
        unknown=unknown,
    )


def _operators(program: Program) -> int:
    """Operators of the chunk's graph."""
    return program.operators


def _dependencies(
    parts: list[Program], order: Sequence[tuple[int, int]], base: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dependencies, the instruction that has each, and whether it is for room."""
    deps = [p.deps.astype(np.int64) + b for p, b in zip(parts, base, strict=False)]
    targets = [np.repeat(np.arange(len(p)), np.diff(p.deps_ptr)) + b for p, b in zip(parts, base, strict=False)]
    space = [p.deps_space for p in parts]
    stored: dict[int, int] = {}  # micro-batch: its last store
    last = -1
    more: list[tuple[int, int]] = []
    for (_, microbatch), part, first in zip(order, parts, base.tolist(), strict=False):
        awaited = last if microbatch < 0 else stored.get(microbatch, -1)
        if awaited >= 0:
            more += [(first + i, awaited) for i in _first_loads(part)]
        stores = np.flatnonzero(part.queue == _STORES)
        if len(stores):
            last = stored[microbatch] = first + int(stores[-1])
    if more:
        added = np.array(more, np.int64)
        deps.append(added[:, 1])
        targets.append(added[:, 0])
        space.append(np.zeros(len(added), bool))
    return np.concatenate(deps), np.concatenate(targets), np.concatenate(space)


def _first_loads(part: Program) -> list[int]:
    """The first instruction of each ring that loads, and of what else reads HBM: collectives and sends."""
    queues = [*_LOADS, int(Queue.CC), int(Queue.CC_GATHER), int(Queue.CC_REDUCE)]
    found = [np.flatnonzero(part.queue == q)[:1] for q in queues]
    return [int(f[0]) for f in found if len(f) and part.opcode[f[0]] != Opcode.RECV]


def _levels(parts: list[Program], base: np.ndarray) -> np.ndarray:
    """HBM levels of the whole: what is there from the start, then what each chunk adds and frees."""
    held = [0] * len(ROLES)
    rows: list[np.ndarray] = []
    for number, (part, first) in enumerate(zip(parts, base.tolist(), strict=False)):
        added = part.memory.copy()
        for role in np.unique(added[:, 1]).tolist():
            at = np.flatnonzero(added[:, 1] == role)
            initial = int(added[at[0], 2]) if added[at[0], 0] < 0 else 0
            if number == 0:
                held[role] = initial
            # Nothing falls below zero: what a chunk frees without having counted it was never there.
            changes = np.cumsum(np.diff(added[at, 2], prepend=initial)) + held[role]
            added[at, 2] = changes - np.minimum(np.minimum.accumulate(changes), 0)
            held[role] = int(added[at[-1], 2])
        kept = added[:, 0] >= 0 if number else np.ones(len(added), bool)
        added[added[:, 0] >= 0, 0] += first
        rows.append(added[kept])
    return np.concatenate(rows) if rows else np.zeros((0, 3), np.int64)
