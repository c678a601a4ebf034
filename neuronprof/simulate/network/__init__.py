"""Collectives over NeuronLink and EFA: which algorithm a message takes, how long it moves, and what each rank puts on each link.

`placement` finds where a replica group stands, `algorithms` says what each algorithm sends over which links, `collectives` puts times to
it and composes what goes over several UltraServers, and `price` holds the formulas.
"""

from neuronprof.simulate.network.collectives import Network, Transfer, check

__all__ = ["Network", "Transfer", "check"]
