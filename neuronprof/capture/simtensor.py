"""Sim: a tensor with shape, dtype, strides and storage identity but no memory."""

from typing import Any

import torch


class Sim(torch.Tensor):
    """A tensor whose values are not computed; every operator on it goes to the engine that made it."""


def is_simulated(value: Any) -> bool:
    """Whether value is a tensor without values."""
    return isinstance(value, Sim)
