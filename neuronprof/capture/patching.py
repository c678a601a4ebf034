"""Replaces attributes of other modules for the length of a run and puts every one of them back."""

import functools
import os
import re
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

_ABSENT = object()


class Patches:
    """A set of replaced attributes; leaving the context puts the originals back in reverse order.

    An attribute that the owner only inherited (a method of torch._C.TensorBase seen through torch.Tensor) is deleted again.
    """

    def __init__(self) -> None:
        self._undo: list[tuple[Any, Any, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Makes owner.name be value until the context is left."""
        self._undo.append((owner, name, vars(owner).get(name, _ABSENT)))
        setattr(owner, name, value)

    def set_item(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        """Makes mapping[key] be value until the context is left."""
        self._undo.append((mapping, key, mapping.get(key, _ABSENT)))
        mapping[key] = value

    def wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        """Calls of owner.name(...) become wrapper(original, ...); name, module and docstring stay those of the original."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        self.set(owner, name, wrapped)

    def wrap_builtin(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        """Like wrap, for an operator of PyTorch: torch.jit.script still compiles calls of owner.name to the operator."""
        from torch.jit import _builtins

        operators = _builtins._get_builtin_table()
        operator = operators.get(id(getattr(owner, name)))
        self.wrap(owner, name, wrapper)
        if operator is not None:
            self.set_item(operators, id(getattr(owner, name)), operator)

    def on_exit(self, undo: Callable[[], None]) -> None:
        """Calls undo when the context is left."""
        self._undo.append((undo, "", None))

    def __enter__(self) -> "Patches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:
            owner, name, value = self._undo.pop()
            mapping = isinstance(owner, dict)
            if not name:
                owner()
                continue
            if value is _ABSENT:
                owner.pop(name) if mapping else delattr(owner, name)
            elif mapping:
                owner[name] = value
            else:
                setattr(owner, name, value)


LIBRARY_FOLDERS = ("site-packages", "dist-packages")
_LIBRARIES = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
_LIBRARIES |= {folder for folder in sys.path if any(Path(folder).glob("*.dist-info"))}  # pip install --target
_NOT_USER = (*{f"{folder}{os.sep}" for folder in _LIBRARIES}, f"{Path(__file__).parents[1]}{os.sep}", "<frozen ")
_is_user_file: dict[str, bool] = {}
_is_torch_file: dict[str, bool] = {}


def called_by_user(depth: int = 2) -> bool:
    """Whether the frame `depth` above this one runs a file of the user, not of an installed package or the standard library.

    Libraries ask torch.cuda.is_available() to choose kernels that only a real GPU has; scripts ask it to choose a device.
    """
    return is_users(sys._getframe(depth).f_code.co_filename)


_TRAINERS = re.compile(
    r"/(accelerate|composer|fastai|ignite|lightning|lightning_fabric|pytorch_lightning)/"
    r"|/transformers/(training_args|trainer|utils/import_utils)\.py$"
)


def called_by_trainer(depth: int = 2) -> bool:
    """Whether the frame `depth` above this one is of a library that chooses the device in the script's place."""
    return _TRAINERS.search(sys._getframe(depth).f_code.co_filename) is not None


def is_users(filename: str) -> bool:
    """Whether a file is the user's."""
    known = _is_user_file.get(filename)
    if known is None:
        known = not filename.startswith(_NOT_USER) and not any(part in filename for part in LIBRARY_FOLDERS)
        _is_user_file[filename] = known
    return known


def called_by_torch(depth: int = 2) -> bool:
    """Whether the frame `depth` above this one runs a file of PyTorch, which chooses its kernels by a tensor's device."""
    filename = sys._getframe(depth).f_code.co_filename
    known = _is_torch_file.get(filename)
    if known is None:
        torch = f"{Path(sys.modules['torch'].__file__ or '').parent}{os.sep}"
        known = _is_torch_file[filename] = filename.startswith((torch, "<frozen "))
    return known
