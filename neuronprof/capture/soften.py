"""What a script may do in Python that a recording cannot do, or not without values: made harmless, and counted."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from neuronprof.capture import engine as engines
from neuronprof.capture import regions, simtensor
from neuronprof.capture.patching import Patches
from neuronprof.capture.simtensor import is_simulated

_Call = Callable[..., Any]


def install(patches: Patches) -> None:
    """Softens PyTorch's Python surface, until patches is undone."""
    regions.install(patches)
    _patch_compile(patches)
    _patch_sparse(patches)
    _patch_kernels(patches)
    _patch_storages(patches)
    _Checkpoints().install(patches)


def _note(key: str) -> None:
    engine = engines.current()
    if engine is not None:
        engine.note(key)


# ---- compilers: the operators are recorded as the eager script issues them, and marked


def _patch_compile(patches: Patches) -> None:
    def compile_(_original: _Call, model: Any = None, **_options: Any) -> Any:
        if model is None:
            return compiled
        return compiled(model)

    def compile_in_place(_original: _Call, self: torch.nn.Module, *_args: Any, **_options: Any) -> None:
        compiled(self)

    patches.wrap(torch, "compile", compile_)
    patches.wrap(torch.nn.Module, "compile", compile_in_place)
    patches.wrap(torch.jit, "save", _save_script)


def compiled(target: Any) -> Any:
    """Target, marked as compiled. A module also answers to _orig_mod, under which PyTorch's own wrapper keeps the module given to it."""
    if isinstance(target, torch.nn.Module):
        target.__dict__["_orig_mod"] = target
    return regions.mark(target, "compiled")


def _save_script(original: _Call, module: Any, file: Any, *args: Any, **kwargs: Any) -> None:
    if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        original(module, file, *args, **kwargs)
    else:
        _note("torch.jit.save of a module that is compiled only on the device, not written")


# ---- sparse gradients: HBM holds dense tensors


def _patch_sparse(patches: Patches) -> None:
    patches.wrap_builtin(torch, "embedding", _dense_argument(4))
    patches.wrap_builtin(torch, "embedding_bag", _dense_argument(5))
    patches.set(torch.optim, "SparseAdam", SparseAdam)


def _dense_argument(position: int) -> _Call:
    def call(original: _Call, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("sparse"):
            kwargs["sparse"] = False
        elif len(args) > position and args[position]:
            args = (*args[:position], False, *args[position + 1 :])
        else:
            return original(*args, **kwargs)
        _note("sparse gradient made dense")
        return original(*args, **kwargs)

    return call


class SparseAdam(torch.optim.Adam):
    """torch.optim.SparseAdam for gradients that were made dense."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, maximize=maximize)


# ---- kernels that PyTorch offers on an accelerator only


def _patch_kernels(patches: Patches) -> None:
    @contextmanager
    def any_kernel(*_backends: Any, **_options: Any) -> Iterator[None]:
        _note("choice of an attention kernel left to the simulated device")
        yield

    def with_cpu(original: _Call, *args: Any, **kwargs: Any) -> list[str]:
        return [*original(*args, **kwargs), "cpu"]

    def histogram(original: _Call, values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if values.is_floating_point():
            return original(values, *args, **kwargs)
        return original(values.float(), *args, **kwargs).to(values.dtype)

    patches.wrap_builtin(torch, "histc", histogram)
    patches.set(torch.nn.attention, "sdpa_kernel", any_kernel)
    patches.set(torch.backends.cuda, "sdp_kernel", any_kernel)
    for name, module in list(sys.modules.items()):  # each optimizer's module has its own reference
        if name.startswith("torch.optim.") and hasattr(module, "_get_capturable_supported_devices"):
            patches.wrap(module, "_get_capturable_supported_devices", with_cpu)


# ---- storages without memory that are freed and allocated again (sharded parameters)

_SIZE = "_neuronprof_size"


def _patch_storages(patches: Patches) -> None:
    def size(original: _Call, self: torch.UntypedStorage) -> int:
        resized = self.__dict__.get(_SIZE)
        return original(self) if resized is None else resized

    def address(original: _Call, self: torch.UntypedStorage) -> int:
        try:
            return original(self)
        except RuntimeError as error:
            if "invalid python storage" not in str(error):
                raise
            return self._cdata

    patches.wrap(torch.UntypedStorage, "data_ptr", address)
    patches.wrap(torch.UntypedStorage, "resize_", _resize)
    patches.wrap(torch.UntypedStorage, "size", size)
    patches.wrap(torch.UntypedStorage, "nbytes", size)


def _resize(original: _Call, self: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
    engine = engines.current()
    if size == 0 and engine is not None:
        engine.tape.recorder.emptied(self)
    try:
        return original(self, size)
    except RuntimeError as error:
        if "invalid python storage" not in str(error):
            raise
        self.__dict__[_SIZE] = size
        return self


# ---- checkpoints without values


class _Checkpoints:
    """torch.save and torch.load where tensors have no values.

    A checkpoint without values never replaces a file that was there before the run; the script that loads it again gets what it saved.
    """

    def __init__(self) -> None:
        self._written: set[Path] = set()
        self._kept: dict[Path, bytes] = {}

    def install(self, patches: Patches) -> None:
        """Replaces torch.save and torch.load; files of other libraries without values are not written."""
        patches.wrap(torch, "save", self._save)
        patches.wrap(torch, "load", self._load)
        if find_spec("safetensors") is not None:
            import safetensors.torch

            patches.wrap(safetensors.torch, "save_file", _save_tensors)

    def _save(self, original: _Call, obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        engine = engines.current()
        if engine is None or engine.values == "real":
            return original(obj, f, *args, **kwargs)
        engine.note("checkpoint saved without values")
        if not isinstance(f, (str, os.PathLike)):
            return original(obj, f, *args, **kwargs)
        path = Path(f).resolve()
        if path.exists() and path not in self._written:
            buffer = io.BytesIO()
            original(obj, buffer, *args, **kwargs)
            self._kept[path] = buffer.getvalue()
        else:
            self._written.add(path)
            original(obj, f, *args, **kwargs)
        return None

    def _load(self, original: _Call, f: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(f, (str, os.PathLike)):
            kept = self._kept.get(Path(f).resolve())
            f = f if kept is None else io.BytesIO(kept)
        with torch.serialization.safe_globals([simtensor._rebuild]):
            return original(f, *args, **kwargs)


def _save_tensors(original: _Call, tensors: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
    if any(is_simulated(tensor) for tensor in tensors.values()):
        _note("safetensors file without values, not written")
    else:
        original(tensors, *args, **kwargs)
