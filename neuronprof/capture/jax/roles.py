"""What the arrays of a training step are: weights, optimizer state, input data; found from what a step passes on to the next."""

import re
from collections import defaultdict
from collections.abc import Sequence

from neuronprof.capture.jax.calls import Call
from neuronprof.capture.jax.functions import Function
from neuronprof.capture.jax.translate import Translated
from neuronprof.terms import Phase, Role

_Described = tuple[Role, str]


class Carried:
    """Knows of each function which arguments come back changed: those that are read by forward are weights, others optimizer state."""

    def __init__(self, calls: Sequence[Call], translated: dict[Function, Translated]) -> None:
        self._roles: dict[tuple[Function, int], _Described] = {}
        self._replaced: dict[Function, set[int]] = defaultdict(set)
        self._results: dict[tuple[Function, int], _Described] = {}
        self._weights: set[int] = set()
        known = [c for c in calls if c.function in translated and c.function.moved is None]
        made = self._find_replaced(known)
        for call in known:
            self._describe(call, translated[call.function])
        for call in known:
            for position, array in enumerate(call.inputs):
                role = self._roles.get((call.function, position))
                if array in made and role is not None:
                    self._results[made[array]] = role

    def _find_replaced(self, calls: Sequence[Call]) -> dict[int, tuple[Function, int]]:
        """Notes arguments that earlier calls made; returns of each array which function made it, as which result."""
        made: dict[int, tuple[Function, int]] = {}
        for call in calls:
            self._replaced[call.function].update(p for p, array in enumerate(call.inputs) if array in made)
            made |= {array: (call.function, index) for index, array in enumerate(call.outputs)}
        return made

    def role(self, function: Function, position: int) -> _Described:
        """Role and name of an argument."""
        return self._roles.get((function, position), (Role.INPUTS, ""))

    def replaced(self, function: Function, position: int) -> bool:
        """Whether an argument is made anew in every step, so that the old one is garbage after the call."""
        return position in self._replaced[function]

    def result(self, function: Function, index: int) -> _Described | None:
        """Role and name of a result that a later call takes; None for one that nothing takes."""
        return self._results.get((function, index))

    def _describe(self, call: Call, module: Translated) -> None:
        """Fills in the roles of a function's arguments; an array that one function knows as a weight is one everywhere."""
        phases: dict[int, set[Phase]] = defaultdict(set)
        for operator in module.operators:
            for buffer in operator.inputs:
                phases[buffer].add(operator.place.phase)
        names = _names(call.function)
        for position, parameter in enumerate(module.parameters):
            if position not in self._replaced[call.function] or (call.function, position) in self._roles:
                continue
            read = (
                bool(phases[parameter] & {Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE})
                and call.function.differentiates
            )
            if read:
                self._weights.add(call.inputs[position])
            role = Role.WEIGHTS if read or call.inputs[position] in self._weights else Role.OPTIMIZER_STATE
            self._roles[call.function, position] = role, names[position]


def _names(function: Function) -> list[str]:
    """The arguments as paths: "state.params['layer0']['kernel']" is state.params.layer0.kernel."""
    found = getattr(getattr(function.jaxpr, "jaxpr", None), "debug_info", None)
    given = getattr(found, "arg_names", None) or ("",) * len(function.avals)
    return [re.sub(r"\[['\"]?([^'\"\]]*)['\"]?\]", r".\1", str(name or "")) for name in given]
