"""Weights that two pieces of a pipeline share, as an embedding that is the output layer too: each keeps a copy and sums its own gradient.

Once a step the piece that does not own the weight sends its gradient, the owner adds it, updates, and sends the weight back; as Megatron's
all-reduce between the first and the last stage does it (Narayanan et al. 2021).
"""

from dataclasses import dataclass, replace

import numpy as np

from neuronprof.distribute.pieces import GRADIENT_REGIONS, STEP, Pieces
from neuronprof.graph.edit import GraphEditor
from neuronprof.graph.ir import Graph, Signature, Tensor
from neuronprof.terms import PHASES, Phase, Role


@dataclass(frozen=True, slots=True)
class Tied:
    """weight: the buffer; gradient: of the owner; part: the gradient of the other piece; tensor: their layout."""

    weight: int
    gradient: int
    part: int
    owner: int
    other: int
    tensor: Tensor


def untie(graph: Graph, pieces: Pieces) -> tuple[Graph, Pieces, tuple[Tied, ...]]:
    """The graph in which each piece sums its own gradient of a shared weight, and what is shared."""
    found = _shared(graph, pieces)
    if not found:
        return graph, pieces, ()
    editor = GraphEditor(graph)
    renamed: dict[int, int] = {}
    for op, tied in found.items():
        own = next(b for b in graph.inputs(op) if b != tied.part)
        renamed[own] = tied.gradient
        editor.buffers[tied.part] = replace(editor.buffers[tied.part], role=Role.GRADIENTS, name="", death=-1)
        editor.buffers[tied.gradient] = replace(editor.buffers[tied.gradient], birth=graph.buffers[own].birth)
    like: list[int] = []
    step = np.flatnonzero(pieces.region == STEP)
    first = int(step[0]) if len(step) else len(graph)
    for op in range(len(graph) + 1):
        if op == first:
            like += _add_parts(editor, tuple(found.values()), min(op, len(graph) - 1))
        if op < len(graph) and op not in found:
            editor.copy(op, operands=[renamed.get(b, b) for b in graph.inputs(op) + graph.outputs(op)])
            like.append(op)
    added = np.array([i for i in range(len(like)) if like[i] < 0], int)
    origin = np.maximum(np.array(like), 0)
    region, piece, layer = pieces.region[origin], pieces.piece[origin], pieces.layer[origin]
    region[added] = STEP
    untied = editor.finish()
    phase = untied.phase.copy()
    phase[added] = PHASES.index(Phase.OPTIMIZER)
    return replace(untied, phase=phase), replace(pieces, region=region, piece=piece, layer=layer), tuple(found.values())


def _add_parts(editor: GraphEditor, shared: tuple[Tied, ...], like: int) -> list[int]:
    """Adds the other pieces' gradients to the owners'."""
    for tied in shared:
        add = Signature("aten.add_.Tensor", (tied.tensor, tied.tensor), (tied.tensor,), (), (0,))
        editor.issue(add, [tied.gradient, tied.part, tied.gradient], like)
    return [-1] * len(shared)


def _shared(graph: Graph, pieces: Pieces) -> dict[int, Tied]:
    """Additions of two pieces' gradients of one weight: operator to what it adds."""
    weights = {b.name: i for i, b in enumerate(graph.buffers) if b.role is Role.WEIGHTS}
    made: dict[int, int] = {}
    found: dict[int, Tied] = {}
    for op in np.flatnonzero(np.isin(pieces.region, GRADIENT_REGIONS)).tolist():
        signature, inputs, outputs = graph.signatures[graph.signature[op]], graph.inputs(op), graph.outputs(op)
        if signature.view:
            continue
        if signature.name == "aten.add.Tensor" and len(signature.inputs) > 1:
            homes = [made.get(b, -1) for b in inputs]
            gradient = graph.buffers[outputs[0]]
            owner = pieces.owner.get(gradient.name, -1)
            if gradient.role is Role.GRADIENTS and homes[0] != homes[1] and owner in homes and min(homes) >= 0:
                at = 1 - homes.index(owner)
                weight = weights[gradient.name]
                found[op] = Tied(weight, outputs[0], inputs[at], owner, homes[at], signature.outputs[0])
        made.update(dict.fromkeys(outputs, int(pieces.piece[op])))
    return found
