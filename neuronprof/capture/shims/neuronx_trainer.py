"""How scripts of neuronx_distributed train: a configuration, the model and the optimizer that follow it, checkpoints."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from neuronprof.capture.shims import neuronx_gradients, parallel_state
from neuronprof.capture.shims.zero1 import NeuronZero1Optimizer
from neuronprof.errors import NeuronprofError

_OPTIMIZER = {"zero_one_enabled": False, "grad_clipping": True, "max_grad_norm": 1.0}
_PRECISION = ("use_master_weights", "use_fp32_grad_acc", "use_master_weights_in_ckpt")


def neuronx_distributed_config(
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    expert_parallel_size: int = 1,
    context_parallel_size: int = 1,
    optimizer_config: dict[str, Any] | None = None,
    activation_checkpoint_config: Any = None,
    sequence_parallel: bool = False,
    mixed_precision_config: dict[str, Any] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """What the model and the optimizer are to be, and the mesh laid over the ranks.

    Raises:
        NeuronprofError: a pipeline, which only the script's own code could divide; or sizes that do not divide the ranks.
    """
    if pipeline_parallel_size > 1:
        raise NeuronprofError(
            "The script asks neuronx_distributed for pipeline stages, which are not recorded; leave pipeline_parallel_size at 1, or lay a "
            "script for one device out with --pp."
        )
    if others.get("lora_config") is not None or others.get("pad_model"):
        raise NeuronprofError("lora_config and pad_model of neuronx_distributed are not recorded; leave them out.")
    optimizer = {**_OPTIMIZER, **(optimizer_config or {})}
    _lay_mesh(tensor_parallel_size, expert_parallel_size, context_parallel_size)
    return {
        "tensor_parallel_size": tensor_parallel_size,
        "pipeline_parallel_size": pipeline_parallel_size,
        "expert_parallel_size": expert_parallel_size,
        "context_parallel_size": context_parallel_size,
        "optimizer_config": optimizer,
        "activation_checkpoint_config": activation_checkpoint_config,
        "sequence_parallel": sequence_parallel,
        "mixed_precision_config": {
            **dict.fromkeys(_PRECISION, optimizer["zero_one_enabled"]),
            **(mixed_precision_config or {}),
        },
        **others,
    }


def _lay_mesh(tensor: int, experts: int, context: int) -> None:
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor, expert_model_parallel_size=experts, context_parallel_size=context
    )


def initialize_parallel_model(
    nxd_config: dict[str, Any],
    model_fn: Callable[..., nn.Module],
    include_buffers: bool = False,
    *model_args: Any,
    **model_kwargs: Any,
) -> nn.Module:
    """The model on the device, with the activations computed again that the configuration says."""
    model = model_fn(*model_args, **model_kwargs).to("xla")
    asked = nxd_config["activation_checkpoint_config"]
    if asked == "full" and hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable()
    elif asked is not None:
        classes = () if asked == "full" else tuple(asked) if isinstance(asked, (list, tuple)) else (asked,)
        for module in list(model.modules()):
            if isinstance(module, classes):
                module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)
    return model


def initialize_parallel_optimizer(
    nxd_config: dict[str, Any],
    optimizer_class: Callable[..., torch.optim.Optimizer],
    parameters: Iterable[Any],
    **defaults: Any,
) -> torch.optim.Optimizer:
    """The optimizer, shared out among the replicas where the configuration says so; it reduces the gradients before it steps."""
    chosen = nxd_config["optimizer_config"]
    if chosen["zero_one_enabled"]:
        precise = nxd_config["mixed_precision_config"]["use_fp32_grad_acc"]
        optimizer: torch.optim.Optimizer = NeuronZero1Optimizer(
            parameters,
            optimizer_class,
            grad_clipping=chosen["grad_clipping"],
            max_norm=chosen["max_grad_norm"],
            higher_cc_precision=precise,
            **defaults,
        )
    else:
        optimizer = optimizer_class(parameters, **defaults)
    return _reducing(optimizer, nxd_config)


def _reducing(optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimizer, whose step first brings together what the ranks have of each gradient."""
    inner, chosen = optimizer.step, config["optimizer_config"]

    def step(closure: Any = None) -> Any:
        gradients = {p: p.grad for entry in optimizer.param_groups for p in entry["params"] if p.grad is not None}
        if parallel_state.size("cp") > 1:
            neuronx_gradients.reduce_over("cp", list(gradients.values()))
        if config["sequence_parallel"]:
            alike = [g for p, g in gradients.items() if getattr(p, "sequence_parallel_enabled", False)]
            neuronx_gradients.reduce_over("tp", alike, average=False)
        if not chosen["zero_one_enabled"]:
            neuronx_gradients.bucket_allreduce_gradients(gradients.values())
            if chosen["grad_clipping"]:
                optimizer.grad_norm = neuronx_gradients.clip_grad_norm(gradients, chosen["max_grad_norm"])
        return inner(closure)

    optimizer.step = step
    return optimizer


def save_checkpoint(
    path: str,
    tag: str,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    user_content: Any = None,
    *_options: Any,
    **_more: Any,
) -> None:
    """Writes what rank 0 has; a checkpoint of a simulated run is of no use but that scripts go on."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        folder = Path(path, str(tag))
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(user_content, folder / "user_content.pt")
        (folder / "done").touch()


def load_checkpoint(path: str, tag: str | None = None, *_objects: Any, **_options: Any) -> Any:
    """What the script itself put into a checkpoint; weights stay as they are, which is all the same to how long a step takes."""
    folders = sorted(done.parent for done in Path(path).glob("*/done"))
    folder = Path(path, tag) if tag is not None else folders[-1] if folders else None
    if folder is None or not (folder / "user_content.pt").is_file():
        return None
    return torch.load(folder / "user_content.pt", weights_only=False)


NAMES: dict[str, Any] = {
    "neuronx_distributed_config": neuronx_distributed_config,
    "initialize_parallel_model": initialize_parallel_model,
    "initialize_parallel_optimizer": initialize_parallel_optimizer,
    "save_checkpoint": save_checkpoint,
    "load_checkpoint": load_checkpoint,
    "has_checkpoint": lambda path: any(Path(path).glob("*/done")),
    "finalize_checkpoint": lambda: None,
}
