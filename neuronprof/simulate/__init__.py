"""Gives each instruction of each rank its start, its duration and the reason it waited."""
