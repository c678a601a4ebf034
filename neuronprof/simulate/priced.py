"""Instructions with the formula and the operands that their durations come from, on whole columns at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from neuronprof import formula
from neuronprof.formula import Formula
from neuronprof.graph.ir import DTYPE_BYTES
from neuronprof.hardware.spec import Chip
from neuronprof.program import Opcode, Program
from neuronprof.simulate import cost, kernelcost
from neuronprof.simulate.job import Job

PICOSECONDS = 1e12
_TILED = "gemm"  # the formula with a choice of tiles


@dataclass(frozen=True)
class Priced:
    """Instructions of one opcode: their rows in the program, the name of their formula, its operands and seconds, a number a row."""

    rows: np.ndarray
    formula: str
    operands: Mapping[str, np.ndarray]
    seconds: np.ndarray


def formulas(chip: Chip) -> dict[str, Formula]:
    """The formulas of a chip's instructions by name; those of collectives are in network.price."""
    return kernelcost.FORMULAS if chip.kernels else cost.FORMULAS


def priced(program: Program, job: Job, cold: np.ndarray | None = None) -> Iterator[Priced]:
    """The instructions of a program, opcode by opcode. What takes no time of its own, or is the network's, is left out.

    cold: of each instruction, the share in which the PE array is cold (see throttling.py); None: never.
    """
    named = kernelcost.OPERANDS if job.chip.kernels else cost.OPERANDS
    itemsize = np.array([DTYPE_BYTES.get(d, 4) for d in program.dtypes] or [4])[program.dtype]
    for code in np.unique(program.opcode).tolist():
        if Opcode(code) not in named:
            continue
        whole, columns = named[Opcode(code)]
        for name, rows in _by_formula(whole, np.flatnonzero(program.opcode == code), program, cold):
            operands = {c: program.operands[rows, i] for i, c in enumerate(columns) if c}
            known = {"itemsize": itemsize, "cold": cold}
            operands |= {c: v[rows] for c, v in known.items() if v is not None and c in formulas(job.chip)[name].names}
            yield _tiled(rows, operands, job) if name == _TILED else _priced(rows, name, operands, job)


def _by_formula(
    name: str, rows: np.ndarray, program: Program, cold: np.ndarray | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Rows of one opcode by their formulas: single instructions of an operator in detail can have one of their own."""
    special, other = np.zeros(len(rows), bool), ""
    if name == "matmul_tile" and cold is not None:
        special, other = cold[rows] > 0, "matmul_cold"
    elif name in cost.FOLLOWING:
        special, other = program.operands[rows, 2] > 0, cost.FOLLOWING[name]
    if special.any():
        yield other, rows[special]
    if not special.all():
        yield name, rows[~special]


def _priced(rows: np.ndarray, name: str, operands: dict[str, np.ndarray], job: Job) -> Priced:
    found = formulas(job.chip)[name].evaluate(job.values | operands)
    return Priced(rows, name, operands, np.broadcast_to(found[formula.RESULT], len(rows)))


def _tiled(rows: np.ndarray, operands: dict[str, np.ndarray], job: Job) -> Priced:
    """Each product by the tile of its result, a x b, that makes it shortest."""
    largest = job.values["kernels.tile"]
    tried = [
        _priced(rows, _TILED, operands | {side: np.full(len(rows), largest * share) for side, share in zip("ab", shares, strict=True)}, job)
        for shares in kernelcost.TILES
    ]  # fmt: skip
    best = np.argmin([one.seconds for one in tried], axis=0)
    chosen = {side: np.choose(best, [one.operands[side] for one in tried]) for side in "ab"}
    return Priced(rows, _TILED, operands | chosen, np.min([one.seconds for one in tried], axis=0))


def durations(program: Program, job: Job, cold: np.ndarray | None = None) -> np.ndarray:
    """Picoseconds that each instruction occupies its engine, int64[n]; collectives are left at 0, the network decides them."""
    result = np.zeros(len(program), np.int64)
    for one in priced(program, job, cold):
        result[one.rows] = np.rint(one.seconds * PICOSECONDS)
    return result


def texts(program: Program, job: Job, cold: np.ndarray | None = None) -> tuple[np.ndarray, list[str]]:
    """Formula and operands of each instruction as text: codes int32[n], -1 for none, and the distinct texts."""
    codes, words = np.full(len(program), -1, np.int32), list[str]()
    for one in priced(program, job, cold):
        first, inverse = _distinct(list(one.operands.values()), len(one.rows))
        codes[one.rows] = len(words) + inverse
        names = formulas(job.chip)[one.formula].names
        words += [
            formula.written(one.formula, {k: v[i] for k, v in one.operands.items() if v[i] or k in names})
            for i in first.tolist()
        ]
    return codes, words


def _distinct(columns: list[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each combination of values, and the combination of each row."""
    code = np.zeros(count, np.int64)
    for column in columns:
        _, inverse = np.unique(column, return_inverse=True)
        _, code = np.unique(code * (int(inverse.max(initial=0)) + 1) + inverse, return_inverse=True)
    _, first, code = np.unique(code, return_index=True, return_inverse=True)
    return first, code
