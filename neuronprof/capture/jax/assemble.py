"""From the calls of the kept steps to a Recording."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from neuronprof.capture.jax.calls import Call
from neuronprof.capture.jax.functions import Function
from neuronprof.capture.jax.roles import Carried
from neuronprof.capture.jax.translate import Operator, Translated
from neuronprof.graph.ir import Buffer, CollectiveCall, Graph, Segment, Signature
from neuronprof.terms import PHASES, Collective, Phase, Role

_FORWARD, _BACKWARD, _OPTIMIZER = (PHASES.index(p) for p in (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER))


@dataclass
class _Names:
    """Numbers of names in the order in which they come; 0 is ''."""

    number: dict[str, int] = field(default_factory=lambda: {"": 0})

    def of(self, name: str) -> int:
        return self.number.setdefault(name, len(self.number))


class Assembler:
    """Lays calls one after another: each takes the buffers of its arrays and makes new ones."""

    def __init__(self, translated: dict[Function, Translated], carried: Carried) -> None:
        self._translated, self._carried = translated, carried
        self._signatures: dict[Signature, int] = {}
        self._modules, self._sources, self._regions = _Names(), _Names(), _Names()
        self._signature: list[int] = []
        self._phase: list[int] = []
        self._region: list[int] = []
        self._place: list[tuple[int, int]] = []
        self._operands: list[int] = []
        self._ends = [0]
        self._calls: dict[int, CollectiveCall] = {}
        self._bytes: list[int] = []
        self._birth: list[int] = []
        self._death: list[int] = []  # last touch, until `finish`
        self._role: list[Role | None] = []
        self._name: list[str] = []
        self._stays: set[int] = set()
        self._of_array: dict[int, int] = {}
        self._arrived: set[int] = set()

    def segment(self, number: int, calls: Sequence[Call], last: bool) -> Segment:
        """Appends a step. last: what it makes for the next one stays alive."""
        start = len(self._signature)
        trained = False
        for call in calls:
            self._call(call, updates=trained and not call.function.differentiates, last=last)
            trained = trained or call.function.differentiates
        return Segment("step", number, start, len(self._signature))

    def finish(self) -> Graph:
        """The graph of all steps."""
        self._find_gradients()
        buffers = tuple(
            Buffer(
                self._bytes[b],
                self._birth[b],
                -1 if b in self._stays else self._death[b],
                self._role[b] or Role.ACTIVATIONS,
                self._name[b],
            )
            for b in range(len(self._bytes))
        )
        modules, sources = zip(*self._place, strict=True) if self._place else ((), ())
        n = len(self._signature)
        return Graph(
            signatures=tuple(self._signatures),
            signature=np.array(self._signature, np.int32),
            phase=np.array(self._phase, np.int8),
            module=np.array(modules, np.int32),
            source=np.array(sources, np.int32),
            region=np.array(self._region, np.int32),
            forward=np.full(n, -1, np.int32),
            operand_ptr=np.array(self._ends, np.int64),
            operands=np.array(self._operands, np.int32),
            buffers=buffers,
            modules=tuple(self._modules.number),
            sources=tuple(self._sources.number),
            regions=tuple(self._regions.number),
            collectives=self._calls,
        )

    def _call(self, call: Call, updates: bool, last: bool) -> None:
        module = self._translated[call.function]
        local = self._arguments(call, module)
        for operator in module.operators:
            self._operator(operator, local, module.buffers, updates)
        self._region += [self._regions.of(call.region)] * len(module.operators)
        if call.function.moved is not None:
            self._moved(call, module, local)
        else:
            self._computed(call, module, local, last)

    def _moved(self, call: Call, module: Translated, local: dict[int, int]) -> None:
        """What arrives from the host is an input that is used up in the step."""
        for result, array in zip(module.results, call.outputs, strict=True):
            self._of_array[array] = buffer = local[result]
            self._role[buffer] = Role.INPUTS
            self._arrived.add(buffer)

    def _computed(self, call: Call, module: Translated, local: dict[int, int], last: bool) -> None:
        """Arguments that come back changed are garbage now, the others stay; results are held until the next step takes them."""
        end = max(len(self._signature) - 1, 0)
        for position, (parameter, donated) in enumerate(zip(module.parameters, call.donated, strict=True)):
            buffer = local[parameter]
            if not self._carried.replaced(call.function, position) and buffer not in self._arrived:
                self._stays.add(buffer)
            elif not donated:
                self._death[buffer] = end
        for index, (result, array) in enumerate(zip(module.results, call.outputs, strict=True)):
            if result not in local:
                local[result] = self._new(module.buffers[result], end)
            self._result(call.function, index, array, local[result], (end, last))

    def _arguments(self, call: Call, module: Translated) -> dict[int, int]:
        """The buffer of each parameter of a call."""
        local = {}
        for position, (parameter, array) in enumerate(zip(module.parameters, call.inputs, strict=True)):
            if array not in self._of_array:
                self._of_array[array] = self._new(module.buffers[parameter], -1)
            local[parameter] = buffer = self._of_array[array]
            if self._role[buffer] is None and call.function.moved is None:
                self._role[buffer], self._name[buffer] = self._carried.role(call.function, position)
        return local

    def _result(self, function: Function, index: int, array: int, buffer: int, end: tuple[int, bool]) -> None:
        """A result that the script holds from the end of the call on; what the last step hands on stays."""
        self._of_array[array] = buffer
        self._death[buffer], last = end
        role = self._carried.result(function, index)
        if role is not None and self._role[buffer] is None:
            self._role[buffer], self._name[buffer] = role
            if last:
                self._stays.add(buffer)

    def _operator(self, operator: Operator, local: dict[int, int], sizes: list[int], updates: bool) -> None:
        index = len(self._signature)
        for made in operator.outputs:
            if made not in local:
                local[made] = self._new(sizes[made], index)
        for read in operator.inputs:
            if read not in local:  # a constant of the program
                local[read] = self._new(sizes[read], index)
        touched = [local[b] for b in (*operator.inputs, *operator.outputs)]
        for buffer in touched:
            self._death[buffer] = index
        phase = Phase.OPTIMIZER if updates and operator.place.phase is Phase.FORWARD else operator.place.phase
        self._signature.append(self._signatures.setdefault(operator.signature, len(self._signatures)))
        self._phase.append(PHASES.index(phase))
        self._place.append((self._modules.of(operator.place.module), self._sources.of(operator.place.source)))
        self._operands += touched
        self._ends.append(len(self._operands))
        if operator.collective is not None:
            self._calls[index] = _streamed(operator.collective, phase)

    def _new(self, nbytes: int, birth: int) -> int:
        self._bytes.append(nbytes)
        self._birth.append(birth)
        self._death.append(max(birth, 0))
        self._role.append(None)
        self._name.append("")
        return len(self._bytes) - 1

    def _find_gradients(self) -> None:
        """What backward makes and the optimizer reads is a gradient; what dies in the phase in which it was made is workspace."""
        weights = {self._bytes[b] for b, role in enumerate(self._role) if role is Role.WEIGHTS}
        for op in np.flatnonzero(np.array(self._phase) == _OPTIMIZER).tolist():
            for buffer in self._operands[self._ends[op] : self._ends[op + 1]]:
                born = self._birth[buffer]
                if (
                    self._role[buffer] is None
                    and born >= 0
                    and self._phase[born] == _BACKWARD
                    and self._bytes[buffer] in weights
                ):
                    self._role[buffer] = Role.GRADIENTS
        for buffer, born in enumerate(self._birth):
            if self._role[buffer] is None and born >= 0 and self._phase[born] == self._phase[self._death[buffer]]:
                self._role[buffer] = Role.WORKSPACE


def _streamed(call: CollectiveCall, phase: Phase) -> CollectiveCall:
    """Gradients that backward reduces are needed by the optimizer alone: they do not hold up what follows."""
    behind = phase is Phase.BACKWARD and call.kind in (Collective.ALL_REDUCE, Collective.REDUCE_SCATTER)
    return replace(call, stream=2) if behind else call
