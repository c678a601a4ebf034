"""Formulas as text: what the simulator evaluates is what a trace keeps and a user reads.

A formula is lines `name = expression`; the last one is its result, in seconds. Expressions have numbers, names (`N`, `tensor.clock`),
+ - * /, comparisons, `a if test else b`, and the functions max, min, ceil and by_size. Nothing else is read, so that the formulas of a
trace from elsewhere can do no harm.
"""

import ast
import operator
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import numpy as np

RESULT = "seconds"
_LONGEST = 10_000  # letters; beyond that nobody wrote it by hand

_Scope = Mapping[str, Any]
_Part = Callable[[_Scope], Any]


def by_size(size: Any, *points: float) -> Any:
    """A share that grows with a size, interpolated over its logarithm between points (size, share, size, share, ...).

    Below the smallest size every piece costs the same, so the share falls with the size.
    """
    sizes, shares = points[::2], points[1::2]
    size = np.maximum(size, 1)
    return np.interp(np.log2(size), np.log2(sizes), shares) * np.minimum(1.0, size / sizes[0])


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "max": lambda *values: reduce(np.maximum, values),
    "min": lambda *values: reduce(np.minimum, values),
    "ceil": np.ceil,
    "by_size": by_size,
}
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.GtE: operator.ge,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.Eq: operator.eq,
}


@dataclass(frozen=True)
class Formula:
    """One formula.

    text: its lines. bounds: what can bind, as 'compute' or 'latency', each with an expression of the same names: the largest one binds.
    slowed_by: what stretches the result on some ranks, by their names in the trace's metadata.
    """

    text: str
    bounds: Mapping[str, str] = field(default_factory=dict)
    slowed_by: tuple[str, ...] = ()

    @cached_property
    def lines(self) -> dict[str, str]:
        """The expression of each name, in order."""
        pairs = (line.partition("=") for line in self.text.strip().splitlines())
        return {name.strip(): expression.strip() for name, _, expression in pairs}

    @cached_property
    def names(self) -> frozenset[str]:
        """Everything that the expressions name, lines of their own included."""
        nodes = (node for text in self.lines.values() for node in ast.walk(ast.parse(text, mode="eval")))
        return frozenset(ast.unparse(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; the text without indentation."""
        text = "\n".join(f"{name} = {expression}" for name, expression in self.lines.items())
        return {"text": text, "bounds": dict(self.bounds), "slowed_by": list(self.slowed_by)}

    def evaluate(self, values: _Scope) -> dict[str, Any]:
        """The value of each line; values: numbers or arrays by name.

        Raises:
            ValueError: the text is not a formula.
            KeyError: a name without a value.
        """
        found: dict[str, Any] = {}
        scope = ChainMap(found, values)  # type: ignore[arg-type]  # the second map is only read
        for name, part in self._parts.items():
            found[name] = part(scope)
        return found

    def bound(self, values: _Scope) -> str:
        """What binds, given the values of the lines and of all that they name; '' if the formula does not say."""
        sizes = {word: float(_part(expression)(values)) for word, expression in self.bounds.items()}
        return max(sizes, key=lambda word: sizes[word], default="")

    @cached_property
    def _parts(self) -> dict[str, _Part]:
        return {name: _part(expression) for name, expression in self.lines.items()}


def written(name: str, operands: Mapping[str, float]) -> str:
    """A formula's name with operands, as events have them: 'matmul batch=1 M=512 K=1024 N=512 itemsize=2'."""
    return " ".join([name, *(f"{key}={_digits(value)}" for key, value in operands.items())])


def read(text: str) -> tuple[str, dict[str, float]]:
    """What `written` wrote.

    Raises:
        ValueError: something else.
    """
    name, *pairs = text.split()
    return name, {key: float(value) for key, _, value in (pair.partition("=") for pair in pairs)}


def _digits(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _part(expression: str) -> _Part:
    """An expression as a function of its names.

    Raises:
        ValueError: it is none.
    """
    try:
        if len(expression) <= _LONGEST:
            return _compiled(ast.parse(expression, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        pass
    raise ValueError(f"not a formula: {expression[:80]}")


def _compiled(node: ast.expr) -> _Part:
    handler = _HANDLERS.get(type(node))
    if handler is None:
        raise ValueError(f"a formula has no {type(node).__name__}")
    return handler(node)


def _constant(node: Any) -> _Part:
    value = node.value
    if type(value) not in (int, float):
        raise ValueError(f"a formula has no {value!r}")
    return lambda _: value


def _named(node: Any) -> _Part:
    name = ast.unparse(node)
    return lambda scope: scope[name]


def _binary(node: Any) -> _Part:
    return _applied(node.op, node.left, node.right)


def _compared(node: Any) -> _Part:
    if len(node.ops) != 1:
        raise ValueError("a formula compares two things at a time")
    return _applied(node.ops[0], node.left, node.comparators[0])


def _applied(sign: ast.AST, left: ast.expr, right: ast.expr) -> _Part:
    apply = _OPERATORS.get(type(sign))
    if apply is None:
        raise ValueError(f"a formula has no {type(sign).__name__}")
    one, other = _compiled(left), _compiled(right)
    return lambda scope: apply(one(scope), other(scope))


def _chosen(node: Any) -> _Part:
    test, body, other = _compiled(node.test), _compiled(node.body), _compiled(node.orelse)

    def choose(scope: _Scope) -> Any:
        holds = test(scope)
        if np.ndim(holds) == 0:  # what is not taken need not have values
            return body(scope) if holds else other(scope)
        return np.where(holds, body(scope), other(scope))

    return choose


def _called(node: Any) -> _Part:
    function = _FUNCTIONS.get(getattr(node.func, "id", ""))
    if function is None or node.keywords:
        raise ValueError(f"a formula has no {ast.unparse(node.func)}")
    arguments = [_compiled(argument) for argument in node.args]
    return lambda scope: function(*(argument(scope) for argument in arguments))


_HANDLERS: dict[type[ast.expr], Callable[[Any], _Part]] = {
    ast.Constant: _constant,
    ast.Name: _named,
    ast.Attribute: _named,
    ast.BinOp: _binary,
    ast.Compare: _compared,
    ast.IfExp: _chosen,
    ast.Call: _called,
}
