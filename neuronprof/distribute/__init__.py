"""Places a graph on a mesh of ranks."""
