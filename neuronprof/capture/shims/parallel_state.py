"""The parallel state of neuronx_distributed: which ranks share a layer, a batch, a pipeline, a sequence or the experts."""

from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from neuronprof.capture.shims.xla_collectives import world_size
from neuronprof.errors import NeuronprofError

AXES = {
    "pipeline_model_parallel": "pp", "data_parallel": "dp", "expert_model_parallel": "ep", "context_parallel": "cp",
    "tensor_model_parallel": "tp",
}  # fmt: skip
_mesh: list[DeviceMesh] = []


def initialize_model_parallel(
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    context_parallel_size: int = 1,
    expert_model_parallel_size: int = 1,
    **_options: Any,
) -> None:
    """Lays the mesh over the ranks: neighbours share a layer, then come context, experts, data and pipeline.

    Raises:
        NeuronprofError: the sizes do not divide the ranks.
    """
    if not dist.is_initialized():
        dist.init_process_group("xla")
    sizes = {
        "tp": tensor_model_parallel_size, "cp": context_parallel_size, "ep": expert_model_parallel_size, "pp": pipeline_model_parallel_size,
    }  # fmt: skip
    together = 1
    for size_of_axis in sizes.values():
        together *= size_of_axis
    if world_size() % together:
        asked = ", ".join(f"{axis} {size_of_axis}" for axis, size_of_axis in sizes.items() if size_of_axis > 1)
        raise NeuronprofError(
            f"The script asks for {asked}, which {world_size()} ranks cannot be divided into; give --world-size a multiple of {together}."
        )
    sizes["dp"] = world_size() // together
    names = tuple(AXES.values())
    _mesh[:] = [init_device_mesh("cpu", tuple(sizes[name] for name in names), mesh_dim_names=names)]


def destroy_model_parallel() -> None:
    """Forgets the mesh."""
    _mesh.clear()


def size(axis: str) -> int:
    """Ranks along an axis; 1 before the mesh is laid."""
    return _mesh[0][axis].size() if _mesh else 1


def rank(axis: str) -> int:
    """This rank's place along an axis."""
    return _mesh[0].get_local_rank(axis) if _mesh else 0


def group(axis: str) -> Any:
    """The process group along an axis; experts are shared among data-parallel ranks, whose gradients are reduced over both."""
    if not _mesh:
        return dist.group.WORLD
    return (
        _mesh[0]["dp", "ep"]._flatten("dp+ep").get_group()
        if axis == "dp" and size("ep") > 1
        else _mesh[0].get_group(axis)
    )


def replica_groups(axis: str) -> list[list[int]]:
    """The ranks of every group along an axis."""
    if not _mesh:
        return [[0]]
    mesh = _mesh[0].mesh
    found: list[list[int]] = mesh.movedim(list(AXES.values()).index(axis), -1).reshape(-1, size(axis)).tolist()
    return found


def _getters() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, axis in AXES.items():
        found[f"get_{name}_size"] = lambda axis=axis: size(axis)
        found[f"get_{name}_rank"] = lambda axis=axis: rank(axis)
        found[f"get_{name}_group"] = lambda axis=axis, **_options: group(axis)
        found[f"get_{name}_replica_groups"] = lambda axis=axis: replica_groups(axis)
    return found


NAMES: dict[str, Any] = {
    "initialize_model_parallel": initialize_model_parallel,
    "destroy_model_parallel": destroy_model_parallel,
    "model_parallel_is_initialized": lambda: bool(_mesh),
    "is_global_rank_zero": lambda: not dist.is_initialized() or dist.get_rank() == 0,
    "get_world_group": lambda **_options: dist.group.WORLD,
    "get_context_model_parallel_size": lambda: size("cp"),
    "get_context_model_parallel_rank": lambda: rank("cp"),
    "rmsg": lambda text: f"[rank {dist.get_rank() if dist.is_initialized() else 0}] {text}",
    **_getters(),
}
