"""Traces of other tools, read as ours, and ours written for other tools."""
