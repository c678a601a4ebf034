"""JAX: what a script calls under jit becomes a graph, from the HLO that XLA makes of it."""
