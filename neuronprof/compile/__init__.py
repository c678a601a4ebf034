"""Fuses operators, plans SBUF and HBM, and lowers a graph to a Program."""
