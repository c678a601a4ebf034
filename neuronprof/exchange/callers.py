"""What the host was doing at an instant: operator, layer, phase and source line, from ranges that nest in each thread."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from neuronprof.exchange.kineto import ANNOTATION, CALL, OPERATOR, Columns, Names
from neuronprof.terms import Phase

NONE = -1
STEP = "ProfilerStep#"  # what the profiler calls its steps, before their number
_MODULE = re.compile(r"nn\.Module: (.+)")
_LINE = re.compile(r"(?P<file>[^()]+\.py)\((?P<line>\d+)\): ")
_LIBRARY = re.compile(r"(?:^|/)(?:site-packages|dist-packages|torch|lib/python3[.\d]*)/|^<")
_BACKWARD = "autograd::engine::evaluate_function"
_OPTIMIZER = ("Optimizer.step#", "Optimizer.zero_grad#")


@dataclass(frozen=True)
class Callers:
    """For each row asked the codes of its operator (of the profile's names), layer, phase, source and region; -1 for none."""

    operator: NDArray[np.int64]
    layer: NDArray[np.int64]
    phase: NDArray[np.int64]
    source: NDArray[np.int64]
    region: NDArray[np.int64]
    layers: list[str]
    sources: list[str]
    regions: list[str]


PHASES = (Phase.FORWARD.value, Phase.BACKWARD.value, Phase.OPTIMIZER.value)
_FORWARD, _BACK, _UPDATE = range(3)

_Label = tuple[int, int, int, int, int]  # operator, layer, phase, source, region
_NOTHING: _Label = (NONE, NONE, NONE, NONE, NONE)


class _Labels:
    """Turns a name and the label around it into its own label."""

    def __init__(self, names: Sequence[str]) -> None:
        self.layers, self.sources, self.regions = Names(), Names(), Names()
        self._texts = names
        self._names = [self._meaning(name) for name in names]
        self._paths: dict[tuple[int, int, str], int] = {}
        self._forward: dict[int, int] = {}  # layer by sequence number

    @staticmethod
    def _meaning(name: str) -> tuple[str, str, int]:
        """Module, source line and phase that a name states; '', '' and -1 if it does not."""
        module = _MODULE.match(name)
        line = _LINE.match(name)
        source = (
            f"{line['file'].rpartition('/')[2]}:{line['line']}" if line and not _LIBRARY.search(line["file"]) else ""
        )
        phase = _BACK if name.startswith(_BACKWARD) else _UPDATE if name.startswith(_OPTIMIZER) else NONE
        return module[1] if module else "", source, phase

    def within(self, around: _Label, what: int, name: int, sequence: int) -> _Label:
        """The label of an event of this kind and name inside another's."""
        operator, layer, phase, source, region = around
        module, line, stated = self._names[name]
        if what == OPERATOR:
            operator = name
            phase = _FORWARD if phase == NONE else phase
        elif what == ANNOTATION and not self._texts[name].startswith(STEP):
            region = self._path(self.regions, region, self._texts[name], "/")
        if stated != NONE:
            phase = stated
        if module:
            layer = self._path(self.layers, layer, module, ".")
        if line:
            source = self.sources.code(line)
        if sequence >= 0 and phase == _BACK:
            layer = self._forward.get(sequence, layer)
        elif sequence >= 0 and layer != NONE:
            self._forward[sequence] = layer
        return operator, layer, phase, source, region

    def _path(self, texts: Names, outer: int, name: str, between: str) -> int:
        """The code of a name inside an outer one."""
        key = id(texts), outer, name
        if key not in self._paths:
            self._paths[key] = texts.code(name if outer == NONE else f"{texts.texts[outer]}{between}{name}")
        return self._paths[key]


def find(host: Columns, names: Sequence[str]) -> Callers:
    """The label of each row of `host`: what runs around it in its thread, itself included.

    Threads are walked in the order in which they begin, so that forward comes before the backward thread that refers to it.
    """
    labels = _Labels(names)
    found = np.full((len(host["start"]), 5), NONE, np.int64)
    order = np.lexsort((-host["duration"], host["start"], host["thread"]))
    threads = host["thread"][order]
    edges = np.flatnonzero(np.diff(threads, prepend=-1, append=-1))
    parts = sorted((order[a:b] for a, b in pairwise(edges)), key=lambda rows: int(host["start"][rows[0]]))
    for rows in parts:
        _walk(rows, host, labels, found)
    operator, layer, phase, source, region = found.T
    return Callers(
        operator, layer, phase, source, region, labels.layers.texts, labels.sources.texts, labels.regions.texts
    )


def _walk(rows: NDArray[np.intp], host: Columns, labels: _Labels, found: NDArray[np.int64]) -> None:
    start = host["start"][rows]
    columns = (start, start + host["duration"][rows], host["what"][rows], host["name"][rows], host["sequence"][rows])
    open_ends: list[int] = []
    open_labels = [_NOTHING]
    result = []
    for begin, end, what, name, sequence in zip(*(column.tolist() for column in columns), strict=True):
        while open_ends and open_ends[-1] <= begin:
            open_ends.pop()
            open_labels.pop()
        label = open_labels[-1] if what == CALL else labels.within(open_labels[-1], what, name, sequence)
        result.append(label)
        open_ends.append(end)
        open_labels.append(label)
    if result:
        found[rows] = result


def annotated(host: Columns, names: Sequence[str], prefix: str) -> dict[int, tuple[int, int]]:
    """Start and end of the annotations 'prefix<number>', by number."""
    numbers = {
        code: int(name[len(prefix) :])
        for code, name in enumerate(names)
        if name.startswith(prefix) and name[len(prefix) :].isdecimal()
    }
    rows = np.flatnonzero((host["what"] == ANNOTATION) & np.isin(host["name"], list(numbers)))
    start, end = host["start"][rows].tolist(), (host["start"] + host["duration"])[rows].tolist()
    return {numbers[code]: (a, b) for code, a, b in zip(host["name"][rows].tolist(), start, end, strict=True)}
