"""The functions that a script calls, and what XLA makes of each: its HLO, and where its results are."""

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from jax._src import core

from neuronprof.errors import NeuronprofError
from neuronprof.graph.ir import Tensor


@dataclass(frozen=True, eq=False)
class Function:
    """What is called: jaxpr, of a jitted function, or a primitive with its parameters, or what has moved to or from the host.

    moved: that array's part on one device, and the script's line.
    avals: types of the arguments; placed: their shardings (None: on one device); differentiates: a part of it is a backward pass.
    """

    name: str
    avals: tuple[Any, ...]
    placed: tuple[Any, ...]
    jaxpr: Any = None
    primitive: tuple[Any, dict[str, Any]] | None = None
    differentiates: bool = False
    moved: tuple[Tensor, str] | None = None

    @property
    def spread(self) -> bool:
        """Whether several devices take part: an argument is spread over them, or the function itself maps over them."""
        return any(p is not None for p in self.placed) or self._mapped

    @cached_property
    def _mapped(self) -> bool:
        return self.jaxpr is not None and _maps(self.jaxpr.jaxpr)

    @property
    def made(self) -> list[Any]:
        """The shardings of the results; None for those on one device."""
        if not self.spread:
            return [None] * len(self.jaxpr.out_avals)
        return list(self._partitioned[1])

    @property
    def taken(self) -> list[Any]:
        """The shardings in which it takes its arguments; None for those on one device."""
        return list(self._partitioned[2]) if self.spread else [None] * len(self.avals)

    @property
    def hlo(self) -> str:
        """The module that one device runs, with the source line of every instruction.

        Raises:
            NeuronprofError: XLA cannot divide the function over the devices.
        """
        return self._partitioned[0] if self.spread else _text(self._lowered.compiler_ir("hlo").get_hlo_module())

    @cached_property
    def _lowered(self) -> Any:
        types = [
            jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=placed)
            for aval, placed in zip(self.avals, self.placed, strict=True)
        ]
        return jax.jit(self._callable(), keep_unused=True).lower(*types)

    def _callable(self) -> Any:
        if self.primitive is None:
            body = core.jaxpr_as_fun(self.jaxpr)
            return lambda *args: body(*args)
        primitive, params = self.primitive
        return lambda *args: primitive.bind(*args, **params)

    @cached_property
    def _partitioned(self) -> tuple[str, Any, Any]:
        """The module right after XLA's partitioner, before the passes of the CPU; and the shardings of results and arguments."""
        with tempfile.TemporaryDirectory() as folder:
            wanted = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd.*", "xla_dump_hlo_as_text": True}
            try:
                compiled = self._lowered.compile(compiler_options=wanted)
            except Exception as error:  # XLA raises many kinds
                raise NeuronprofError(
                    f"XLA cannot divide the function {self.name} over {jax.device_count()} devices: {str(error).splitlines()[0]}"
                ) from error
            dumped = sorted(Path(folder).glob("*after_spmd-partitioning*.txt"))
            if not dumped:
                raise NeuronprofError(
                    f"XLA left no partitioned module of the function {self.name}; this version of JAX is not supported."
                )
            return dumped[-1].read_text(), compiled.output_shardings, compiled.input_shardings[0]


def _maps(jaxpr: Any) -> bool:
    """Whether a jaxpr runs a part of itself on each of several devices, as shard_map and pmap do."""
    return any(
        (eqn.primitive.name == "shard_map" and eqn.params["mesh"].size > 1)
        or any(map(_maps, core.jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )


def _text(module: Any) -> str:
    from jaxlib import _hlo  # type: ignore[attr-defined]

    options = _hlo.HloPrintOptions.short_parsable()
    options.print_metadata = True
    text: str = module.to_string(options)
    return text
