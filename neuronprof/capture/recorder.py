"""Recorder: operators as columns and storages as buffers, while the script runs."""

import weakref
from array import array
from collections.abc import Iterable

import torch

from neuronprof.capture.simtensor import Sim


class _Watch(weakref.ref):
    """A weak reference to a storage that knows its buffer; its callback runs when the memory is really freed."""

    __slots__ = ("buffer", "computed", "key")
    buffer: int
    computed: int
    key: int


class Recorder:
    """Columns of the recorded operators and of the buffers they touched.

    An operator's number is its place in the columns. A buffer is one storage: PyTorch keeps the Python object of a storage alive as
    long as its memory, so a weak reference tells the moment it is freed, and an address that is used again is a new buffer.
    `birth` is -1 for a buffer that was first met as an operand; `death` is -1 while it is alive.
    """

    def __init__(self) -> None:
        self.signature = array("i")
        self.phase = array("b")
        self.module = array("i")
        self.source = array("i")
        self.region = array("i")
        self.forward = array("q")
        self.operand_ptr = array("q", [0])
        self.operands = array("q")
        self.births = array("q")
        self.deaths = array("q")
        self.first_use = array("q")
        self.nbytes = array("q")
        self.live_bytes = 0
        self._live: dict[int, int] = {}
        self._watches: dict[int, _Watch] = {}
        self._emptied: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._on_freed = self._freed

    def __len__(self) -> int:
        return len(self.signature)

    def buffer(self, tensor: torch.Tensor, birth: int = -1) -> int:
        """The buffer of a tensor's storage, or -1 if it has none; a new one is born at operator `birth`."""
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse and opaque tensors
            return -1
        found = self._live.get(storage._cdata)
        if found is not None:
            return found
        if birth < 0 and storage._cdata in self._emptied:
            birth = max(len(self.signature) - 1, 0)
        # Kernels of the CPU may leave a reduction's workspace behind its scalar result.
        nbytes = tensor.element_size() if birth >= 0 and not tensor.dim() else storage.nbytes()
        return self._adopt(storage, nbytes, birth, isinstance(tensor, Sim))

    def emptied(self, storage: torch.UntypedStorage) -> None:
        """The memory of a storage is given back, though the storage stays: what it holds next is another buffer."""
        key = storage._cdata
        found = self._live.get(key)
        if found is not None:
            self._freed(self._watches[found])
            self._emptied[key] = weakref.ref(storage, lambda _ref: self._emptied.pop(key, None))

    def known(self, tensor: torch.Tensor) -> int:
        """The buffer of a tensor that some operator touched, or -1."""
        try:
            return self._live.get(tensor.untyped_storage()._cdata, -1)
        except (NotImplementedError, RuntimeError):
            return -1

    def add(self, signature: int, place: tuple[int, int, int, int, int], operands: Iterable[torch.Tensor]) -> int:
        """Appends an operator: place is (phase, module, source, region, forward); operands its inputs, all known or born before."""
        op = len(self.signature)
        self.signature.append(signature)
        self.phase.append(place[0])
        self.module.append(place[1])
        self.source.append(place[2])
        self.region.append(place[3])
        self.forward.append(place[4])
        append, live = self.operands.append, self._live
        for tensor in operands:
            try:
                found = live.get(tensor.untyped_storage()._cdata)
            except (NotImplementedError, RuntimeError):
                found = -1
            append(self.buffer(tensor) if found is None else found)
        return op

    def close(self, op: int, results: Iterable[torch.Tensor]) -> None:
        """Appends the results of the operator just added."""
        append, live = self.operands.append, self._live
        for tensor in results:
            try:
                found = live.get(tensor.untyped_storage()._cdata)
            except (NotImplementedError, RuntimeError):
                found = -1
            append(self.buffer(tensor, op) if found is None else found)
        self.operand_ptr.append(len(self.operands))

    def _adopt(self, storage: torch.UntypedStorage, nbytes: int, birth: int, simulated: bool) -> int:
        buffer = len(self.nbytes)
        watch = _Watch(storage, self._on_freed)
        watch.buffer, watch.key = buffer, storage._cdata
        self._watches[buffer] = watch
        self._live[watch.key] = buffer
        self.nbytes.append(nbytes)
        self.births.append(birth)
        self.deaths.append(-1)
        self.first_use.append(len(self.signature) - 1)
        watch.computed = 0 if simulated else nbytes
        self.live_bytes += watch.computed
        return buffer

    def _freed(self, watch: "weakref.ref[torch.UntypedStorage]") -> None:
        assert isinstance(watch, _Watch)
        buffer = watch.buffer
        self.deaths[buffer] = max(len(self.signature) - 1, 0)
        self.live_bytes -= watch.computed
        if self._live.get(watch.key) == buffer:
            del self._live[watch.key]
        del self._watches[buffer]
