"""Gives each rank its part of every tensor: placements spread from a few seeds over all operators, and collectives go where they must."""

from neuronprof.distribute.sharding.shard import shard
from neuronprof.distribute.sharding.split import split_batch

__all__ = ["shard", "split_batch"]
