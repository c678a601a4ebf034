"""Draws finished results: it never sums."""
