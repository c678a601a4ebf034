"""A profiler for AWS Trainium4, a machine that one cannot buy yet."""

__version__ = "0.1.0"
