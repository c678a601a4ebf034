"""Joins the programs of chunks, in the order of a schedule, into the program of a stage."""

from collections.abc import Iterator, Sequence
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
    codes = [np.array([dtypes.setdefault(d, len(dtypes)) for d in p.dtypes] or [0], np.int8)[p.dtype] for p in programs]
    ops = [np.where(p.op < 0, -1, p.op + first).astype(np.int32) for p, first in zip(programs, first_op, strict=False)]
    deps_ptr, deps, space = _dependencies(programs, order, base)
    calls = {int(b) + i: call for p, b in zip(parts, base, strict=False) for i, call in p.collectives.items()}
    unknown: dict[str, int] = {}
    for p in programs:
        for name, count in p.unknown.items():
            unknown[name] = unknown.get(name, 0) + count
    return Program(
        opcode=np.concatenate([p.opcode for p in parts]),
        queue=np.concatenate([p.queue for p in parts]),
        op=np.concatenate([ops[c] for c, _ in order]),
        dtype=np.concatenate([codes[c] for c, _ in order]),
        operands=np.concatenate([p.operands for p in parts]),
        nbytes=np.concatenate([p.nbytes for p in parts]),
        flops=np.concatenate([p.flops for p in parts]),
        deps_ptr=deps_ptr,
        deps=deps,
        deps_space=space,
        memory=_levels(parts, base),
        dtypes=tuple(dtypes),
        collectives=calls,
        unknown=unknown,
        on_chip=np.concatenate([p.on_chip + np.array((0, b, b, 0)) for p, b in zip(parts, base, strict=False)]),
    )


def _operators(program: Program) -> int:
    """Operators of the chunk's graph."""
    return program.operators


def _dependencies(
    programs: Sequence[Program], order: Sequence[tuple[int, int]], base: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each instruction's dependencies begin, these, and whether each is for room; what a chunk waits for of another comes last."""
    parts, counts = [programs[c] for c, _ in order], [np.diff(p.deps_ptr) for p in programs]
    count = np.concatenate([counts[c] for c, _ in order])
    deps = np.concatenate([p.deps + np.int32(first) for p, first in zip(parts, base, strict=False)])
    space = np.concatenate([p.deps_space for p in parts])
    more = np.array(list(_between(programs, order, base)), np.int32).reshape(-1, 2)
    at = np.cumsum(count)[more[:, 0]]
    count[more[:, 0]] += 1
    deps_ptr = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    return deps_ptr, np.insert(deps, at, more[:, 1]), np.insert(space, at, False)


def _between(
    programs: Sequence[Program], order: Sequence[tuple[int, int]], base: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Instructions, each with one of an earlier chunk that it waits for."""
    loads = [_first_loads(p) for p in programs]
    stores = [np.flatnonzero(p.queue == _STORES)[-1:].tolist() for p in programs]
    stored: dict[int, int] = {}  # micro-batch: its last store
    last = -1
    for (chunk, microbatch), first in zip(order, base.tolist(), strict=False):
        awaited = last if microbatch < 0 else stored.get(microbatch, -1)
        if awaited >= 0:
            yield from ((first + i, awaited) for i in loads[chunk])
        for store in stores[chunk]:
            last = stored[microbatch] = first + store


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
