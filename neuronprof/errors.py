"""The one error that a user can fix."""


class NeuronprofError(Exception):
    """Says in one sentence what is wrong, where, and what to do about it; the command line prints it and exits with 2."""
