"""What the kernels of NCCL, RCCL and HCCL say about the collective that they carry out."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neuronprof.terms import Algorithm, Collective

KERNEL = re.compile(r"^nccl|^hip.*ccl|^hccl|.*ncclKernel")
_NAMES = {
    "allreduce": Collective.ALL_REDUCE,
    "allgather": Collective.ALL_GATHER,
    "reducescatter": Collective.REDUCE_SCATTER,
    "alltoall": Collective.ALL_TO_ALL,
    "sendrecv": Collective.SEND_RECV,
    "broadcast": Collective.BROADCAST,
    "barrier": Collective.BARRIER,
    "send": Collective.SEND,
    "recv": Collective.RECV,
}
_SIZES = {"float": 4, "double": 8, "half": 2, "bfloat16": 2, "int": 4, "long": 8, "short": 2, "byte": 1, "char": 1, "bool": 1,
          "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1, "uint8": 1, "int32": 4, "int64": 8, "float16": 2, "float32": 4,
          "float64": 8}  # fmt: skip
_MOST_BYTES = 2**48 - 1  # of one collective; more is no size


@dataclass(frozen=True)
class Message:
    """One collective of one rank; '' and 0 where the trace does not say. group: 'name:0-7'; bytes: what the rank puts in."""

    name: str
    algorithm: str
    group: str
    dtype: str
    bytes: int
    sequence: int


def message(kernel: str, args: Mapping[str, Any]) -> Message:
    """The message of a kernel by its name and, where they are recorded, its arguments."""
    dtype = str(args.get("dtype") or "").lower()
    elements = max(_number(args.get("In msg nelems")), _number(args.get("Out msg nelems")) if _is_gather(args) else 0)
    return Message(
        _name(str(args.get("Collective name") or "")) or _name(kernel) or kernel,
        Algorithm.RING if "RING" in kernel.upper() else "",
        _group(args),
        dtype,
        min(elements * _SIZES.get(dtype, 0), _MOST_BYTES),
        _number(args.get("Seq"), -1),
    )


def _is_gather(args: Mapping[str, Any]) -> bool:
    return "gather" in str(args.get("Collective name") or "").lower()


def _name(text: str) -> str:
    plain = re.sub(r"[^a-z]", "", text.lower().replace("_base", ""))
    return next((name.value for word, name in _NAMES.items() if word in plain), "")


def _group(args: Mapping[str, Any]) -> str:
    name = str(args.get("Process Group Description") or args.get("Process Group Name") or "")
    members = args.get("Process Group Ranks")
    if isinstance(members, str):
        try:
            members = json.loads(members)
        except ValueError:  # a long list is abbreviated: [0, 1, ..., 127]
            members = None
    if not (isinstance(members, list) and members and all(type(m) is int for m in members)):
        return name
    return f"{name or 'group'}:{_ranges(sorted(members))}"


def _ranges(members: list[int]) -> str:
    """Ranks as '0-3,8'."""
    parts: list[list[int]] = []
    for member in members:
        if parts and member == parts[-1][1] + 1:
            parts[-1][1] = member
        else:
            parts.append([member, member])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _number(value: Any, default: int = 0) -> int:
    return value if type(value) is int and 0 <= value < 2**62 else default
