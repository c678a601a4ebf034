"""Where an instruction comes from: what JAX says of it in op_name, 'jit(step)/transpose(jvp(LM))/layer0/query/dot_general'."""

import re
from dataclasses import dataclass
from functools import lru_cache

from neuronprof.terms import Phase

_WRAPPED = re.compile(
    r"^(jvp|transpose|vmap|remat|checkpoint|rematted_computation|custom_jvp|custom_vjp|shard_map|pmap)\((.*)\)$"
)
_DROPPED = re.compile(r"^(jit|pjit)\(.*\)$|^(while|body|cond|closed_call|checkpoint|remat|rematted_computation|shard_map|branch_\d+_fun|"
                      r"custom_jvp_call|custom_vjp_call|custom_vjp_call_jaxpr|core_call|xla_call)$")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Phase (OTHER: outside any differentiation), module path and source line."""

    phase: Phase
    module: str
    source: str


def place(op_name: str, source: str) -> Place:
    """The place of an instruction."""
    return Place(*_read(op_name), source)


@lru_cache(maxsize=100_000)
def _read(op_name: str) -> tuple[Phase, str]:
    parts = op_name.split(";")[0].split("/")
    backward = any(p.startswith("transpose(") for p in parts)
    again = backward and any("rematted_computation" in p for p in parts)
    forward = any(p.startswith("jvp(") for p in parts)
    phase = Phase.RECOMPUTE if again else Phase.BACKWARD if backward else Phase.FORWARD if forward else Phase.OTHER
    modules = [_unwrapped(p) for p in parts[:-1] if not _DROPPED.match(p)]
    return phase, ".".join(m for m in modules if m)


def _unwrapped(part: str) -> str:
    while found := _WRAPPED.match(part):
        part = found[2]
    return "" if _DROPPED.match(part) else part
