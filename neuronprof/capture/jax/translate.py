"""From an HLO module to operators: calls inlined, loops unrolled, each instruction one operator with the buffers it touches."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from neuronprof.capture.jax import opcodes
from neuronprof.capture.jax.hlo import Instruction, Module, contiguous
from neuronprof.capture.jax.naming import Results, Value, named
from neuronprof.capture.jax.opnames import Place, place
from neuronprof.graph.groups import ReplicaGroup
from neuronprof.graph.ir import CollectiveCall, Signature, Tensor
from neuronprof.terms import Collective, Phase

_MOST_TURNS = 4096
"""Turns of a loop that are written out; more of them stand in the notes."""


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator on numbered buffers."""

    signature: Signature
    place: Place
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    collective: CollectiveCall | None = None


@dataclass
class Translated:
    """A module's operators. buffers: bytes of each; parameters and results: their buffers, in order; notes: what had no rule."""

    operators: list[Operator] = field(default_factory=list)
    buffers: list[int] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)
    results: list[int] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)


_Group = Callable[[tuple[int, ...]], ReplicaGroup]


def translate(module: Module, folder: str, group: _Group) -> Translated:
    """The operators of a module. folder: of the script, to tell its lines; group: describes the ranks that take part in a collective."""
    return _Translator(module, folder, group).run()


class _Translator:
    def __init__(self, module: Module, folder: str, group: _Group) -> None:
        self._module, self._folder, self._group = module, folder, group
        self._out = Translated()
        self._structures: dict[str, Callable[[Instruction, tuple[Results, ...]], Results]] = {
            "tuple": self._tuple,
            "get-tuple-element": self._element,
            "while": self._loop,
            "conditional": self._branch,
            **dict.fromkeys(opcodes.CALLS, self._inlined),
        }
        self._caller = ""  # the op_name of the call that is being written out

    def run(self) -> Translated:
        entry = self._module.computations[self._module.entry]
        count = sum(i.opcode == "parameter" for i in entry)
        tensors = {int(i.operands): i.result[0] for i in entry if i.opcode == "parameter"}
        arguments = tuple((self._new(tensors[i]),) for i in range(count))
        self._out.parameters = [v[0].buffer for v in arguments]
        self._out.results = [v.buffer for v in self._computation(self._module.entry, arguments)]
        self._out.operators = phased(self._out.operators)
        return self._out

    def _computation(self, name: str, arguments: tuple[Results, ...]) -> Results:
        """Runs a computation's instructions; arguments and the result are flat lists of values."""
        known: dict[str, Results] = {}
        result: Results = ()
        for instruction in self._module.computations[name]:
            if instruction.opcode == "parameter":
                made = arguments[int(instruction.operands)]
            else:
                made = self._instruction(instruction, known)
            known[instruction.name] = made
            if instruction.root:
                result = made
        return result

    def _instruction(self, i: Instruction, known: dict[str, Results]) -> Results:
        if i.opcode in ("constant", "partition-id", "replica-id"):
            return (self._new(i.result[0], constant=i.result[0].numel == 1),)
        operands = tuple(known[name] for name in i.inputs)
        if i.opcode in opcodes.SAME:
            return operands[0] if operands else ()
        if structure := self._structures.get(i.opcode):
            return structure(i, operands)
        return self._computed(i, tuple(operand[0] for operand in operands if operand))

    def _tuple(self, _i: Instruction, operands: tuple[Results, ...]) -> Results:
        return tuple(v for operand in operands for v in operand)

    def _element(self, i: Instruction, operands: tuple[Results, ...]) -> Results:
        """One result of several; of nested ones all."""
        first = int(i.word("index"))
        return operands[0][first : first + 1] if len(i.result) == 1 else operands[0]

    def _inlined(self, i: Instruction, operands: tuple[Results, ...]) -> Results:
        return self._called(i, i.word("calls") or i.word("to_apply"), operands)

    def _called(self, i: Instruction, name: str, arguments: tuple[Results, ...]) -> Results:
        """A computation in the name of its caller: JAX names what is inside relative to it, 'checkpoint/dot_general'."""
        outer, self._caller = self._caller, self._op_name(i)
        result = self._computation(name, arguments)
        self._caller = outer
        return result

    def _branch(self, i: Instruction, operands: tuple[Results, ...]) -> Results:
        """The first branch stands for all."""
        listed = re.search(r"branch_computations=\{%?([\w.\-]+)", i.attributes)
        return self._called(i, listed[1] if listed else i.word("true_computation"), operands[1:2])

    def _loop(self, i: Instruction, operands: tuple[Results, ...]) -> Results:
        carried, turns = operands[0], _turns(self._module, i)
        if turns > _MOST_TURNS:
            self._note(f"loops of more than {_MOST_TURNS} turns, cut short", turns - _MOST_TURNS)
        for _ in range(min(turns, _MOST_TURNS)):
            carried = self._called(i, i.word("body"), (carried,))
        return carried

    def _computed(self, i: Instruction, values: Results) -> Results:
        if i.opcode in opcodes.COLLECTIVES:
            return self._collective(i, values)
        if placed := self._in_place(i, values):
            return (placed,)
        name, inputs, attributes = named(i, values, self._module)
        operands = tuple(v for v in inputs if not v.constant)
        if not operands and name.startswith("aten.") and i.opcode in opcodes.ELEMENTWISE:
            return (self._new(i.result[0], constant=i.result[0].numel == 1),)
        return self._emit(i, Signature(name, tuple(v.tensor for v in operands), i.result, attributes), operands)

    def _in_place(self, i: Instruction, values: Results) -> Value | None:
        """The result of what makes no new memory; None for all else."""
        if i.opcode in opcodes.VIEWS:
            return self._view(i, values[0])
        if i.opcode == "custom-call" and i.word("custom_call_target") in opcodes.ANNOTATIONS:
            return Value(values[0].buffer, i.result[0], values[0].constant)
        if i.opcode == "copy" and values[0].tensor.stride == contiguous(values[0].tensor.shape):
            return values[0]  # XLA's later passes take out what copies nothing into another order
        if i.opcode == "dynamic-slice" and _leading(values[0].tensor, i.result[0]):
            return self._alias(i, "aten.select.int", values[0], i.result[0])
        return self._update(i, values[0], values[1]) if i.opcode == "dynamic-update-slice" else None

    def _collective(self, i: Instruction, values: Results) -> Results:
        kind, name = opcodes.COLLECTIVES[i.opcode]
        group = self._group(_first_group(i.attributes))
        results: list[Value] = []
        made = i.result[len(values) :] if i.opcode.endswith("-start") and len(i.result) > len(values) else i.result
        for value, tensor in zip(values, made, strict=False):
            nbytes = max(value.tensor.nbytes, tensor.nbytes)
            if kind is Collective.ALL_TO_ALL and len(values) > 1:
                nbytes = sum(v.tensor.nbytes for v in values)
            signature = Signature(name, (value.tensor,), (tensor,), (group.axis,))
            results += self._emit(i, signature, (value,), CollectiveCall(kind, nbytes, group))
            if kind is Collective.ALL_TO_ALL and len(values) > 1:
                return (*results, *values[1:])
        return tuple(results)

    def _emit(
        self, i: Instruction, signature: Signature, inputs: Results, call: CollectiveCall | None = None
    ) -> Results:
        outputs = tuple(self._new(t) for t in signature.outputs)
        buffers = tuple(v.buffer for v in inputs), tuple(v.buffer for v in outputs)
        self._out.operators.append(Operator(signature, self._place(i), *buffers, call))
        return outputs

    def _view(self, i: Instruction, value: Value) -> Value:
        tensor = i.result[0]
        if i.opcode == "broadcast":
            if value.constant:
                return Value(value.buffer, tensor, constant=True)
            kept = i.numbers("dimensions")
            strides = dict(zip(kept, value.tensor.stride or (), strict=False))
            tensor = Tensor(tensor.dtype, tensor.shape, tuple(strides.get(d, 0) for d in range(len(tensor.shape))))
        elif i.opcode == "transpose" and value.tensor.stride:
            tensor = Tensor(tensor.dtype, tensor.shape, tuple(value.tensor.stride[d] for d in i.numbers("dimensions")))
        return self._alias(i, "aten." + opcodes.NAMES[i.opcode], value, tensor, value.constant)

    def _alias(self, i: Instruction, name: str, value: Value, tensor: Tensor, constant: bool = False) -> Value:
        """A view: another layout of the same buffer."""
        if not constant:
            signature = Signature(name, (value.tensor,), (tensor,), i.numbers("dimensions") or tensor.shape, view=True)
            self._out.operators.append(Operator(signature, self._place(i), (value.buffer,), (value.buffer,)))
        return Value(value.buffer, tensor, constant)

    def _update(self, i: Instruction, whole: Value, part: Value) -> Value:
        """A slice is overwritten in place: only the slice moves."""
        target = Tensor(part.tensor.dtype, part.tensor.shape, part.tensor.stride)
        signature = Signature("aten.copy_.default", (target, part.tensor), (target,), (), (0,))
        self._out.operators.append(Operator(signature, self._place(i), (whole.buffer, part.buffer), (whole.buffer,)))
        return Value(whole.buffer, i.result[0])

    def _place(self, i: Instruction) -> Place:
        return place(self._op_name(i), self._module.source(i, self._folder))

    def _op_name(self, i: Instruction) -> str:
        name = i.word("op_name")
        return name if not name or not self._caller or name.startswith("jit(") else f"{self._caller}/{name}"

    def _new(self, tensor: Tensor, constant: bool = False) -> Value:
        self._out.buffers.append(tensor.nbytes)
        return Value(len(self._out.buffers) - 1, tensor, constant)

    def _note(self, text: str, count: int = 1) -> None:
        self._out.notes[text] = self._out.notes.get(text, 0) + count


def phased(operators: list[Operator]) -> list[Operator]:
    """Gives what stands outside any differentiation a phase: forward if forward or backward need it, else the optimizer's."""
    trains = any(o.place.phase is Phase.BACKWARD for o in operators)
    needed: set[int] = set()
    found = []
    for operator in reversed(operators):
        phase = operator.place.phase
        if phase is Phase.OTHER:
            phase = Phase.FORWARD if not trains or needed.intersection(operator.outputs) else Phase.OPTIMIZER
        if phase is not Phase.OPTIMIZER:
            needed.update(operator.inputs)
        found.append(replace(operator, place=replace(operator.place, phase=phase)))
    return found[::-1]


def _leading(whole: Tensor, part: Tensor) -> bool:
    """Whether a slice is one index of the first dimension: the weights of one layer among those of all."""
    return part.shape[1:] == whole.shape[1:] and part.shape[:1] == (1,)


def _turns(module: Module, loop: Instruction) -> int:
    """How often a loop runs: what XLA knows, or the constant that its condition compares with."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations.get(loop.word("condition"), ())
    limits = [int(i.operands) for i in condition if i.opcode == "constant" and i.operands.isdigit()]
    return max(limits, default=1)


def _first_group(attributes: str) -> tuple[int, ...]:
    """The ranks of the first replica group: {{0,1},{2,3}}, or [2,2]<=[4] with a transposition, or pairs of a permutation."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return tuple(int(n) for n in listed[1].split(","))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        return tuple(_iota(*(_numbers(part or "") for part in iota.groups())))
    pairs = re.search(r"source_target_pairs=\{([\d,{}]+)\}", attributes)
    return tuple(sorted(_ring(re.findall(r"\{(\d+),(\d+)\}", pairs[1])))) if pairs else (0,)


def _iota(shape: tuple[int, ...], dims: tuple[int, ...], permutation: tuple[int, ...]) -> Iterator[int]:
    import numpy as np

    ranks = np.arange(int(np.prod(dims))).reshape(dims)
    yield from (ranks.transpose(permutation) if permutation else ranks).reshape(shape)[0].tolist()


def _ring(pairs: list[tuple[str, str]]) -> set[int]:
    """The ranks that a message of rank 0 reaches in turn."""
    following = {int(a): int(b) for a, b in pairs}
    seen, at = {0}, following.get(0, 0)
    while at not in seen:
        seen.add(at)
        at = following.get(at, 0)
    return seen


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)
