"""neuronx_distributed: its parallel state, its sharded layers and how it trains, over torch.distributed."""

import logging
from typing import Any

import torch
import torch.distributed as dist

from neuronprof.capture.shims import (
    neuronx_gradients,
    neuronx_modules,
    neuronx_trainer,
    parallel_layers,
    parallel_state,
    zero1,
)

_LAYERS: dict[str, Any] = {
    name: getattr(parallel_layers, name) for name in ("ColumnParallelLinear", "RowParallelLinear", "ParallelEmbedding")
}
_MAPPINGS: dict[str, Any] = {
    "copy_to_tensor_model_parallel_region": parallel_layers.copy_to,
    "reduce_from_tensor_model_parallel_region": parallel_layers.reduce_from,
    "gather_from_tensor_model_parallel_region": parallel_layers.gather_from,
    "scatter_to_tensor_model_parallel_region": parallel_layers.scatter_to,
    "gather_from_sequence_parallel_region": parallel_layers.gather_from_sequence,
    "reduce_scatter_to_sequence_parallel_region": parallel_layers.reduce_scatter_to_sequence,
    "scatter_to_sequence_parallel_region": parallel_layers.scatter_to_sequence,
}
_ATTENTION = {"nki_flash_attn_func": neuronx_modules.nki_flash_attn_func}
_ADAMW = {"AdamW_FP32OptimParams": neuronx_modules.AdamW_FP32OptimParams}


def _divide(whole: int, parts: int) -> int:
    assert whole % parts == 0, f"{whole} cannot be divided by {parts}"
    return whole // parts


MODULES: dict[str, dict[str, Any]] = {
    "neuronx_distributed": {"__version__": "0.17", **neuronx_trainer.NAMES},
    "neuronx_distributed.trainer": neuronx_trainer.NAMES,
    "neuronx_distributed.parallel_layers": {**_LAYERS, "clip_grad_norm": neuronx_gradients.clip_grad_norm},
    "neuronx_distributed.parallel_layers.layers": _LAYERS,
    "neuronx_distributed.parallel_layers.mappings": _MAPPINGS,
    "neuronx_distributed.parallel_layers.loss_functions": {
        "parallel_cross_entropy": parallel_layers.parallel_cross_entropy
    },
    "neuronx_distributed.parallel_layers.grads": neuronx_gradients.NAMES,
    "neuronx_distributed.parallel_layers.parallel_state": parallel_state.NAMES,
    "neuronx_distributed.parallel_layers.random": {"model_parallel_xla_manual_seed": torch.manual_seed},
    "neuronx_distributed.parallel_layers.utils": {
        "divide": _divide,
        "requires_init_pg_override": lambda: not dist.is_initialized(),
        "is_pjrt_device": lambda: True,
        "get_local_world_size": lambda: parallel_state.size("tp"),
    },
    "neuronx_distributed.modules": {},
    "neuronx_distributed.modules.qkv_linear": {
        "GQAQKVColumnParallelLinear": neuronx_modules.GQAQKVColumnParallelLinear
    },
    "neuronx_distributed.kernels": {},
    "neuronx_distributed.kernels.flash_attn": _ATTENTION,
    "neuronx_distributed.overrides": {},
    "neuronx_distributed.overrides.transformer_overrides": {
        "apply_rotary_pos_emb": neuronx_modules.apply_rotary_pos_emb
    },
    "neuronx_distributed.optimizer": {"NeuronZero1Optimizer": zero1.NeuronZero1Optimizer},
    "neuronx_distributed.utils": {},
    "neuronx_distributed.utils.adamw_fp32_optim_params": _ADAMW,
    "neuronx_distributed.utils.batch_utils": {
        "get_batch_on_this_context_parallel_rank": neuronx_modules.get_batch_on_this_context_parallel_rank
    },
    "neuronx_distributed.utils.logger": {"get_logger": lambda name="Neuron", **_options: logging.getLogger(name)},
}
