"""Arrays without values: they have shape, dtype and sharding, and stand where JAX expects an array."""

import operator
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
from jax._src import core

_MOST_MATERIALISED = 1 << 24


class SimArray(core.Tracer):
    """An array of which only the type exists; asked for numbers, it gives ones."""

    __slots__ = ("_placed",)

    on_read: ClassVar[Callable[["SimArray"], None]] = staticmethod(lambda _array: None)

    def __init__(self, aval: core.ShapedArray, placed: Any = None) -> None:
        """Wraps a type. placed: its sharding (None: on the first device)."""
        super().__init__(core.eval_trace, aval)
        self._placed = placed

    def full_lower(self) -> "SimArray":
        """Itself: there is no simpler form."""
        return self

    def to_concrete_value(self) -> None:
        """No value is known."""

    def _ones(self) -> np.ndarray:
        type(self).on_read(self)
        if self.aval.size <= _MOST_MATERIALISED:
            return np.ones(self.aval.shape, self.aval.dtype)
        return np.broadcast_to(np.ones((), self.aval.dtype), self.aval.shape)

    def __array__(self, *_args: Any, **_options: Any) -> np.ndarray:
        return self._ones()

    def tolist(self) -> Any:
        """Ones."""
        return self._ones().tolist()

    def item(self, *args: int) -> Any:
        """One."""
        return self._ones().item(*args)

    def __float__(self) -> float:
        return float(self._ones())

    def __int__(self) -> int:
        return int(self._ones())

    def __index__(self) -> int:
        return operator.index(self._ones())

    def __bool__(self) -> bool:
        return bool(self._ones())

    def __format__(self, specification: str) -> str:
        return format(self._ones()[()], specification) if self.aval.size == 1 else repr(self)

    def __repr__(self) -> str:
        return f"Array({self.aval.str_short()}, no values)"

    def block_until_ready(self) -> "SimArray":
        """Nothing is computed, so nothing is waited for."""
        return self

    def copy_to_host_async(self) -> None:
        """There is nothing to copy."""

    def is_ready(self) -> bool:
        """Always."""
        return True

    def delete(self) -> None:
        """There is no memory to free."""

    def is_deleted(self) -> bool:
        """Never."""
        return False

    @property
    def sharding(self) -> Any:
        """Where the array would be."""
        return self._placed or jax.sharding.SingleDeviceSharding(jax.devices()[0])

    @property
    def committed(self) -> bool:
        """Whether a computation has to run where the array is."""
        return self._placed is not None

    @property
    def device(self) -> Any:
        """The first device, or the sharding."""
        return self._placed or jax.devices()[0]

    def devices(self) -> set[Any]:
        """The devices that hold a part of it."""
        return set(self.sharding.device_set)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return int(self.aval.size * self.aval.dtype.itemsize)


def nbytes(aval: Any) -> int:
    """Bytes of a type; 0 for what is no array."""
    dtype = getattr(aval, "dtype", None)
    return int(getattr(aval, "size", 0) * getattr(dtype, "itemsize", 4))
