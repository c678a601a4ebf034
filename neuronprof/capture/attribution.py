"""Where an operator comes from: module path, phase, the user's source line, and the forward operator of a gradient."""

import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

from neuronprof.capture.patching import LIBRARY_FOLDERS, is_users
from neuronprof.terms import PHASES, Phase

_graph_task = torch._C._current_graph_task_id
_current_node = torch._C._current_autograd_node
_grad_enabled = torch.is_grad_enabled
_NO_SEQUENCE = 2**63  # AccumulateGrad's sequence number lies above
_CHECKPOINT = str(Path("torch", "utils", "checkpoint.py"))
_FUNCTION = str(Path("torch", "autograd", "function.py"))

FORWARD = PHASES.index(Phase.FORWARD)
BACKWARD = PHASES.index(Phase.BACKWARD)
RECOMPUTE = PHASES.index(Phase.RECOMPUTE)
OPTIMIZER = PHASES.index(Phase.OPTIMIZER)
EVALUATION = PHASES.index(Phase.EVALUATION)
OTHER = PHASES.index(Phase.OTHER)


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread."""
    return bool(_graph_task() != -1)


class Running(threading.local):
    """What is going on in one thread.

    stack: modules whose forward is running, the outermost first; recomputing: whether in a backward pass. region, optimizing,
    optimizer_depth: the innermost region, how many optimizers' steps are running and the length of the stack when they began.
    first: is added to the numbers of the thread's autograd nodes; newest: the largest of them that has an operator.
    """

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.recomputing: list[bool] = []
        self.region = self.optimizing = self.optimizer_depth = self.first = 0
        self.newest = -1


class Modules:
    """Paths of modules ('GPT.blocks.0.attn') and the stack of those whose forward is running."""

    def __init__(self, running: Running) -> None:
        self.paths = [""]
        self._running = running
        self.parameters: dict[int, tuple[str, int]] = {}
        self.roots: list[weakref.ref[torch.nn.Module]] = []
        self._ids = {"": 0}
        self._known: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()

    @property
    def stack(self) -> list[int]:
        """Paths of the modules whose forward is running in this thread."""
        return self._running.stack

    @property
    def recomputing(self) -> list[bool]:
        """Whether each of them runs inside a backward pass."""
        return self._running.recomputing

    def enter(self, module: torch.nn.Module) -> None:
        """A forward begins."""
        path = self._known.get(module)
        if path is None:
            path = self._register(module)
        self.stack.append(path)
        self.recomputing.append(in_backward())

    def leave(self) -> None:
        """The innermost forward ends."""
        if self.stack:
            self.stack.pop()
            self.recomputing.pop()

    def _register(self, root: torch.nn.Module) -> int:
        name = type(root).__name__
        if self.stack:
            name = f"{self.paths[self.stack[-1]]}.{name}"
        else:
            self.roots.append(weakref.ref(root))
        number = 2
        base = name
        while name in self._ids:
            name, number = f"{base}#{number}", number + 1
        for inner, module in root.named_modules():
            if module not in self._known:
                self._known[module] = self._intern(f"{name}.{inner}" if inner else name)
        for inner, tensor in [*root.named_parameters(), *root.named_buffers()]:
            path = f"{name}.{inner}"
            self.parameters[id(tensor)] = (path, self._intern(path.rpartition(".")[0]))
        return self._known[root]

    def _intern(self, path: str) -> int:
        found = self._ids.get(path)
        if found is None:
            found = self._ids[path] = len(self.paths)
            self.paths.append(path)
        return found


class Sources:
    """Lines of the user's files: the innermost frame that is neither PyTorch's, nor a library's, nor ours."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int]] = [("", 0)]
        self.script_folder = ""
        self._ids: dict[tuple[CodeType, int], int] = {}
        self._users: dict[CodeType, bool] = {}

    def current(self) -> int:
        """The line that issued the operator being dispatched."""
        frame: FrameType | None = sys._getframe(3)
        users = self._users
        while frame is not None:
            code = frame.f_code
            user = users.get(code)
            if user is None:
                user = users[code] = self._is_users(code.co_filename)
            if user:
                line = (code, frame.f_lineno)
                found = self._ids.get(line)
                return self._new(line) if found is None else found
            frame = frame.f_back
        return 0

    def _new(self, line: tuple[CodeType, int]) -> int:
        self._ids[line] = len(self.lines)
        self.lines.append((line[0].co_filename, line[1]))
        return self._ids[line]

    def _is_users(self, file: str) -> bool:
        folder = self.script_folder
        if folder and any(part in folder for part in LIBRARY_FOLDERS) and file.startswith(folder):
            return True
        return not file.startswith("<") and is_users(file)

    def names(self) -> tuple[str, ...]:
        """'train.py:12' relative to the script's folder where it is inside, else the absolute path; '' for entry 0."""
        folder = Path(self.script_folder).resolve() if self.script_folder else None
        return ("", *(f"{_relative(Path(file), folder)}:{number}" for file, number in self.lines[1:]))


def _relative(file: Path, folder: Path | None) -> Path:
    file = Path(file).absolute()
    inside = folder is not None and file.resolve().is_relative_to(folder)
    return file.resolve().relative_to(folder) if inside and folder is not None else file


def called_from(file: str) -> bool:
    """Whether a function of a file of PyTorch is being called in this thread; file: the end of its path."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        if frame.f_code.co_filename.endswith(file):
            return True
        frame = frame.f_back
    return False


def needs_gradient(operands: Any) -> bool:
    """Whether autograd follows an operator on these operands."""
    return _grad_enabled() and any(t.requires_grad for t in operands)


class Attribution:
    """Places each operator: (phase, module, source, region, forward operator).

    The link from a gradient to its forward operator is exact: autograd numbers its nodes, and the number of the node that an operator
    belongs to is read before the operator executes (its decomposition may make nodes of its own).
    """

    def __init__(self) -> None:
        self.running = Running()
        self.modules = Modules(self.running)
        self.sources = Sources()
        self.regions = [""]
        self._region_ids = {"": 0}
        self._operator_of: dict[int, int] = {}
        self.on_leaf: Callable[[torch.Tensor], None] | None = None

    def name_region(self, name: str) -> int:
        """The number of a region; nested names are joined with '/'."""
        path = f"{self.regions[self.running.region]}/{name}" if self.running.region else name
        if path not in self._region_ids:
            self._region_ids[path] = len(self.regions)
            self.regions.append(path)
        return self._region_ids[path]

    def place(self, op: int, sequence: int, operands: Any, columns: Any) -> tuple[int, int, int, int, int]:
        """Where operator `op` belongs; sequence: number of the newest autograd node before it executed."""
        if _graph_task() != -1:
            return self._behind(op, sequence, columns)
        running = self.running
        stack = running.stack
        self._number(op, sequence, running)
        source = self.sources.current()
        if len(stack) > running.optimizer_depth:
            return FORWARD, stack[-1], source, running.region, -1
        if needs_gradient(operands):
            return FORWARD, stack[-1] if stack else 0, source, running.region, -1
        if running.optimizing:
            return OPTIMIZER, 0, source, running.region, -1
        # The forward of a custom Function runs without gradients: its node stands for all of it.
        return FORWARD if called_from(_FUNCTION) else OTHER, 0, source, running.region, -1

    def _behind(self, op: int, sequence: int, columns: Any) -> tuple[int, int, int, int, int]:
        modules = self.modules
        again = bool(modules.recomputing) and modules.recomputing[-1]
        again = again or (_grad_enabled() and called_from(_CHECKPOINT))
        node = _current_node()
        number = -1 if node is None else node._sequence_nr()
        forward = self._operator_of.get(number, -1)
        if again:
            self._number(op, sequence, self.running)
            module = modules.stack[-1] if modules.stack else (columns.module[forward] if forward >= 0 else 0)
            return RECOMPUTE, module, self.sources.current(), self.running.region, forward
        if forward >= 0:
            region = self.running.region or columns.region[forward]
            return BACKWARD, columns.module[forward], columns.source[forward], region, forward
        module = self._owner(node.variable) if number > _NO_SEQUENCE else 0
        return BACKWARD, module, self.sources.current(), self.running.region, -1

    def _number(self, op: int, sequence: int, running: Running) -> None:
        sequence += running.first
        if sequence >= running.first and sequence > running.newest:
            self._operator_of[sequence] = op
            running.newest = sequence

    def _owner(self, leaf: torch.Tensor) -> int:
        known = self.modules.parameters.get(id(leaf))
        if known is not None:
            return known[1]
        if self.on_leaf is not None:
            self.on_leaf(leaf)
        return 0
