"""Reads the text of an HLO module: its computations, their instructions, and the source line of each."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from neuronprof.graph.ir import Tensor

DTYPES = {
    "pred": "bool", "s8": "int8", "s16": "int16", "s32": "int32", "s64": "int64", "u8": "uint8", "u16": "uint16", "u32": "uint32",
    "u64": "uint64", "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "c64": "complex64", "c128": "complex128",
    "f8e4m3fn": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e4m3fnuz": "float8_e4m3fnuz", "f8e5m2fnuz": "float8_e5m2fnuz",
    "s4": "int8", "u4": "uint8",
}  # fmt: skip
_NOBODYS = (str(Path(__file__).parents[2]), "<frozen ")  # files that only run what the script called
_HEAD = re.compile(r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = ")
_TYPE = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{[^}]*\})?")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_COMMENT = re.compile(r"/\*.*?\*/")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+)\s*(?:\(.*\))?.*\{\s*$")


@dataclass(frozen=True)
class Instruction:
    """One instruction. result: its tensors, one unless `several`; operands: names, or the literal of a constant; attributes: the rest."""

    name: str
    opcode: str
    result: tuple[Tensor, ...]
    several: bool
    operands: str
    attributes: str
    root: bool

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the instructions whose results it takes."""
        return tuple(part.split()[-1].lstrip("%") for part in _split(self.operands) if part.strip())

    def numbers(self, name: str) -> tuple[int, ...]:
        """An attribute that is a list of numbers: dimensions={0,1}."""
        found = re.search(rf"\b{name}=\{{([\d,\s]*)\}}", self.attributes)
        return tuple(int(n) for n in found[1].split(",") if n.strip()) if found else ()

    def word(self, name: str) -> str:
        """An attribute that is a word or a quoted text, '' for none."""
        found = re.search(rf'\b{name}=(?:"([^"]*)"|%?([\w.\-]+))', self.attributes)
        return (found[1] or found[2] or "") if found else ""


@dataclass(frozen=True)
class Module:
    """Computations by name, the entry's name, and where each stack frame is: frame to (file, line, the frame that called it)."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str
    frames: dict[int, tuple[str, int, int]] = field(default_factory=dict)

    def source(self, instruction: Instruction, folder: str) -> str:
        """'file:line' of the innermost frame in the script's folder, else of the innermost one; '' where XLA made the instruction."""
        innermost, frame = "", int(instruction.word("stack_frame_id") or 0)
        while frame in self.frames:
            file, line, caller = self.frames[frame]
            if file.startswith(folder) and "site-packages" not in file:
                return f"{file}:{line}"
            innermost = innermost or ("" if file.startswith(_NOBODYS) else f"{file}:{line}")
            frame = caller
        return innermost


def parse(text: str) -> Module:
    """Reads a module as XLA prints it, with metadata."""
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, found = "", "", list[Instruction]()
    for line in _COMMENT.sub("", text).splitlines():
        if line.startswith("}"):
            computations[name] = tuple(found)
        elif " = " in line and line.startswith((" ", "\t")):
            found.append(_instruction(line))
        elif (opened := _COMPUTATION.match(line)) and not line.startswith("HloModule"):
            name, found = opened[2], []
            entry = name if opened[1] else entry
    return Module(computations, entry, _frames(text))


def _instruction(line: str) -> Instruction:
    head = _HEAD.match(line)
    assert head is not None, line
    kind, rest = _kind(line[head.end() :])
    opcode = _OPCODE.match(rest)
    assert opcode is not None, line
    end = _closing(rest, opcode.end() - 1)
    tensors = tuple(_tensor(dtype, sizes) for dtype, sizes in _TYPE.findall(kind))
    several = kind.startswith("(")
    operands, attributes = rest[opcode.end() : end], rest[end + 1 :]
    return Instruction(head["name"], opcode[1], tensors, several, operands, attributes, bool(head["root"]))


def _kind(text: str) -> tuple[str, str]:
    """The type at the start of a text, and what follows it."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:]


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` closes."""
    depth, quoted = 0, False
    for at in range(opening, len(text)):
        char = text[at]
        if char == '"':
            quoted = not quoted
        elif not quoted and char in "({":
            depth += 1
        elif not quoted and char in ")}":
            depth -= 1
            if not depth:
                return at
    return len(text)


def _split(text: str) -> list[str]:
    """A list of operands at its commas, but not at those inside shapes."""
    if "[" not in text:
        return text.split(",")
    return re.split(r",(?![^\[({]*[\])}])", text)


def _tensor(dtype: str, sizes: str) -> Tensor:
    shape = tuple(int(n.lstrip("<=")) for n in sizes.split(",") if n)
    return Tensor(DTYPES.get(dtype, dtype), shape, contiguous(shape))


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor whose elements stand one after another."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(1, size)
    return tuple(reversed(strides))


def _frames(text: str) -> dict[int, tuple[str, int, int]]:
    """The tables of files, locations and stack frames at the head of the module; a caller is printed as its number plus one."""
    files = dict(re.findall(r'^(\d+) "(.*)"$', _section(text, "FileNames"), re.M))
    places = {
        number: (files.get(file, ""), int(line))
        for number, file, line in re.findall(
            r"^(\d+) \{file_name_id=(\d+).*? line=(\d+)", _section(text, "FileLocations"), re.M
        )
    }
    frames = re.findall(
        r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?\}", _section(text, "StackFrames"), re.M
    )
    return {int(n): (*places.get(place, ("", 0)), int(caller or 1) - 1) for n, place, caller in frames}


def _section(text: str, name: str) -> str:
    start = text.find(f"\n{name}\n")
    return text[start : text.find("\n\n", start + 1)] if start >= 0 else ""
