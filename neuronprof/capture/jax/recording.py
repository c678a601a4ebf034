"""The kept steps of a JAX script as a Recording."""

from collections.abc import Sequence
from dataclasses import replace

import jax

from neuronprof.capture.jax import host
from neuronprof.capture.jax.assemble import Assembler
from neuronprof.capture.jax.boundaries import Boundaries
from neuronprof.capture.jax.calls import Call, Listener, work
from neuronprof.capture.jax.functions import Function
from neuronprof.capture.jax.hlo import parse
from neuronprof.capture.jax.roles import Carried
from neuronprof.capture.jax.translate import Translated, translate
from neuronprof.capture.options import CaptureOptions
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import Recording
from neuronprof.terms import Role


class Recorded:
    """What was called, cut into steps. steps: ranges in the calls; empty where there is none."""

    def __init__(self, listener: Listener, boundaries: Boundaries, folder: str, options: CaptureOptions) -> None:
        self._listener, self._folder, self._options = listener, folder, options
        self.steps = boundaries.steps(len(listener.calls), lambda: _inferences(listener.calls))

    def recording(self, script: str, argv: tuple[str, ...]) -> Recording:
        """The Recording of the steps to keep.

        Raises:
            NeuronprofError: XLA cannot divide a function over the devices.
        """
        count, warmup = self._options.steps_to_record, self._options.warmup
        kept = self.steps[warmup : warmup + count] or self.steps[-count:]
        calls = self._listener.calls[: kept[-1][1]]
        groups = _Groups(calls)
        translated = {
            function: _translated(function, self._folder, groups)
            for function in dict.fromkeys(c.function for c in calls[kept[0][0] :])
        }
        carried = Carried(calls, translated)
        assembler = Assembler(translated, carried)
        segments = tuple(assembler.segment(i, calls[a:b], (a, b) == kept[-1]) for i, (a, b) in enumerate(kept))
        graph = assembler.finish()
        parameters = max(_parameters(function, carried) for function in translated)
        notes = _added([t.notes for t in translated.values()])
        recording = Recording(graph, segments, self._listener.shown, parameters, notes, script, argv, framework="jax")
        return replace(recording, world=groups.world, axes=groups.axes)


def _translated(function: Function, folder: str, groups: "_Groups") -> Translated:
    if function.moved is not None:
        return host.translated(function)
    return translate(parse(function.hlo), folder, groups.of)


def _inferences(calls: Sequence[Call]) -> list[int]:
    """Of a script that never differentiates: each call of the function with the most work is a step."""
    jitted = {c.function for c in calls if c.function.jaxpr is not None}
    heaviest = max(jitted, key=lambda f: work(f.jaxpr.jaxpr), default=None)
    return [i for i, c in enumerate(calls) if c.function is heaviest]


def _parameters(function: Function, carried: Carried) -> int:
    """Elements of the arguments that are weights."""
    return sum(
        int(a.size) for position, a in enumerate(function.avals) if carried.role(function, position)[0] is Role.WEIGHTS
    )


def _added(counts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for notes in counts:
        for text, count in notes.items():
            total[text] = total.get(text, 0) + count
    return total


class _Groups:
    """The mesh of the arguments' shardings, and which of its axes a collective runs along."""

    def __init__(self, calls: Sequence[Call]) -> None:
        meshes = [p.mesh for c in calls for p in c.function.placed if p is not None and hasattr(p, "mesh")]
        shape = dict(meshes[-1].shape) if meshes else {}
        spread = any(p is not None for c in calls for p in c.function.placed)
        self.world = jax.device_count() if spread else 1
        self.axes = {str(name): int(size) for name, size in shape.items()} or (
            {"dp": self.world} if self.world > 1 else {}
        )

    def of(self, ranks: tuple[int, ...]) -> ReplicaGroup:
        """The group of these ranks, under the name of the mesh axis that has its size and stride."""
        group = ReplicaGroup.of("", ranks)
        stride, found = 1, []
        for name, size in reversed(self.axes.items()):
            if any(s <= stride < c * s for c, s in group.extents) and size > 1:
                found.append(name)
            stride *= size
        return ReplicaGroup("+".join(reversed(found)) or "all", group.extents)
