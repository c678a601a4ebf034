"""The user's cache folder: what can be made again or fetched again."""

import os
from pathlib import Path


def root() -> Path:
    """The folder in which everything is kept: `neuronprof` in XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "neuronprof"
