"""The time of operators by module: what a layer takes is what all in it takes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("depth", "name", "layer", "phase", "bound", "source", "per_step_ns", "share")
OUTSIDE = "outside of modules"


@dataclass
class _Node:
    """A module, or an operator in it, which has no children."""

    name: str
    layer: str
    phase: str = ""
    bound: str = ""
    source: str = ""
    per_step_ns: float = 0.0
    share: float = 0.0
    children: list["_Node"] = field(default_factory=list)


def by_layer(table: "pd.DataFrame") -> "pd.DataFrame":
    """The tree in the order of reading: a row a module, those in it and its operators below it, what takes longest first.

    Args:
        table: `bottlenecks_by_operator` of the analyzers; its times add up to those of the modules at depth 0.
    """
    import pandas as pd

    root, modules = _Node("", ""), dict[str, _Node]()
    columns = ["op_name", "layer", "phase", "class", "source", "per_step_ns", "share"]
    for name, layer, phase, bound, source, time, share in table[columns].itertuples(index=False, name=None):
        around = _around(layer or OUTSIDE, root, modules) if layer else [_module(OUTSIDE, OUTSIDE, root, modules)]
        for node in around:
            node.per_step_ns += time
            node.share += share
        around[-1].children.append(_Node(name or bound, layer, phase, bound, source, time, share))
    return pd.DataFrame(list(_rows(root, 0)), columns=list(COLUMNS))


def _around(layer: str, root: _Node, modules: dict[str, _Node]) -> list[_Node]:
    """The modules that a layer is in, from the outermost one to itself."""
    parts, above, found = layer.split("."), root, []
    for depth, part in enumerate(parts, 1):
        above = _module(".".join(parts[:depth]), part, above, modules)
        found.append(above)
    return found


def _module(path: str, name: str, above: _Node, modules: dict[str, _Node]) -> _Node:
    if path not in modules:
        modules[path] = _Node(name, "" if path == OUTSIDE else path)
        above.children.append(modules[path])
    return modules[path]


def _rows(node: _Node, depth: int) -> Iterator[tuple[object, ...]]:
    for child in sorted(node.children, key=lambda one: (-one.per_step_ns, one.name, one.phase, one.bound)):
        about = (child.name, child.layer, child.phase, child.bound, child.source, child.per_step_ns, child.share)
        yield depth, *about
        yield from _rows(child, depth + 1)
