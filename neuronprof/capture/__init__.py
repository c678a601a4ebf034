"""Runs the user's script under an instrumented runtime and keeps its training steps as a Graph."""
