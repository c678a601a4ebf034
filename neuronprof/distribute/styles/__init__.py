"""Execution styles that change what a step computes: recomputation in backward, products in FP8."""
