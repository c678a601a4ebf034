"""Holds the simulator against training steps that others measured."""
