"""Which operators a user wants instruction by instruction: --detail instruction[:PATTERN]."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from neuronprof.errors import NeuronprofError
from neuronprof.simulate.events import short_name

if TYPE_CHECKING:
    from neuronprof.graph.ir import Graph
    from neuronprof.hardware.spec import Chip

_LEVEL = "instruction"
_SHOWN = 6


@dataclass(frozen=True)
class Detail:
    """Operators whose name or layer matches a pattern, whatever the case; without a wildcard, contains it."""

    pattern: str = "*"

    @classmethod
    def of(cls, text: str, chip: "Chip") -> "Detail":
        """What was asked for.

        Raises:
            NeuronprofError: it cannot be read, or the chip's operators are kernels, which are not cut into instructions.
        """
        level, _, pattern = text.partition(":")
        if level != _LEVEL:
            raise NeuronprofError(
                f"--detail {text} cannot be read; write it like instruction or 'instruction:layers.0.*'."
            )
        if chip.kernels:
            raise NeuronprofError(
                f"--detail is for chips whose operators are compiled to instructions; those of {chip.name} are kernels, so leave it out."
            )
        return cls(pattern or "*")

    def operators(self, graph: "Graph") -> frozenset[int]:
        """The operators of a graph that match."""
        named = np.array([self._matches(short_name(s.name)) for s in graph.signatures] or [False])
        placed = np.array([self._matches(module) for module in graph.modules] or [False])
        return frozenset(np.flatnonzero(named[graph.signature] | placed[graph.module]).tolist())

    def check(self, graphs: Iterable["Graph"]) -> None:
        """Refuses a pattern that nothing matches.

        Raises:
            NeuronprofError: with some names that there are.
        """
        known = list(graphs)
        if not any(self.operators(graph) for graph in known):
            raise NeuronprofError(
                f"No operator or layer is called '{self.pattern}', as --detail asks; there are {_some(known)}."
            )

    def _matches(self, name: str) -> bool:
        wild = any(sign in self.pattern for sign in "*?[")
        return fnmatchcase(name.lower(), self.pattern.lower() if wild else f"*{self.pattern.lower()}*")


def _some(graphs: Sequence["Graph"]) -> str:
    modules = {m for g in graphs for m in g.modules if m}
    names = {short_name(s.name) for g in graphs for s in g.signatures}
    return ", ".join([*sorted(modules)[:_SHOWN], *sorted(names)[:_SHOWN]])
