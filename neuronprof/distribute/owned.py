"""Which piece of a pipeline has which weight, gradient and optimizer state, and what it runs of the optimizer."""

from dataclasses import replace
from functools import cache

from neuronprof.distribute.pieces import parameter
from neuronprof.graph.ir import Graph, Signature
from neuronprof.terms import Role

_OWNED = (Role.WEIGHTS, Role.GRADIENTS, Role.OPTIMIZER_STATE)


class Owned:
    """owner: the piece that has each buffer (-1: none, it is no weight, gradient or optimizer state, or nobody's)."""

    def __init__(self, graph: Graph, owner: dict[str, int]) -> None:
        self._graph = graph
        self._roles = [b.role in _OWNED for b in graph.buffers]
        named = cache(lambda name: owner.get(parameter(name, owner) or "", -1))
        self.owner = [named(b.name) if owned else -1 for b, owned in zip(graph.buffers, self._roles, strict=True)]
        self._restricted: dict[tuple[int, int], tuple[Signature, list[int]]] = {}

    def is_owned(self, buffer: int) -> bool:
        """Whether a buffer of the graph is a weight, a gradient or optimizer state."""
        return buffer < len(self._roles) and self._roles[buffer]

    def pieces(self, op: int) -> list[int]:
        """The pieces that run an operator of the step: those that have one of its parameters."""
        return sorted({self.owner[b] for b in self._graph.inputs(op) if b >= 0} - {-1})

    def restricted(self, op: int, piece: int) -> tuple[Signature, list[int]]:
        """An operator of the step on the tensors that a piece has: lists lose those of other pieces."""
        if (op, piece) not in self._restricted:
            self._restricted[op, piece] = self._restrict(op, piece)
        return self._restricted[op, piece]

    def _restrict(self, op: int, piece: int) -> tuple[Signature, list[int]]:
        graph = self._graph
        signature, inputs, outputs = graph.signatures[graph.signature[op]], graph.inputs(op), graph.outputs(op)
        owners = [self.owner[b] if b >= 0 else -1 for b in inputs]
        return restrict(signature, inputs, outputs, owners, piece)


def restrict(
    signature: Signature, inputs: list[int], outputs: list[int], owners: list[int], piece: int
) -> tuple[Signature, list[int]]:
    """An operator on what one owner has of its inputs. owners: of each input (-1: nobody in particular)."""
    if {*owners} <= {-1, piece}:
        return signature, inputs + outputs
    lost = [o not in (-1, piece) for o in owners]
    # A list without names stands beside one with: its places are lost together.
    count = len(outputs) or next((n for n in range(1, len(owners)) if owners[n] == -1), len(inputs))
    beside = [o == -1 and len(inputs) > count for o in owners]
    keep = [i for i in range(len(inputs)) if not lost[i] and not (beside[i] and lost[i % count])]
    kept = [i for i in range(len(outputs)) if len(outputs) == 1 or i >= len(lost) or not lost[i]]
    moved = {old: new for new, old in enumerate(keep)}
    new = replace(
        signature,
        inputs=tuple(signature.inputs[i] for i in keep),
        outputs=tuple(signature.outputs[i] for i in kept),
        mutates=tuple(moved[i] for i in signature.mutates if i in moved),
    )
    return new, [inputs[i] for i in keep] + [outputs[i] for i in kept]
