"""Gives each rank its part of every tensor: placements spread from a few seeds over all operators, and collectives go where they must."""

from neuronprof.distribute.sharding.shard import Sharder
from neuronprof.distribute.sharding.split import batch_size, tokens

__all__ = ["Sharder", "batch_size", "tokens"]
