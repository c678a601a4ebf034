"""Analyzers: each maps the events of one chip to a small table and combines two such tables.

The package is also what scripts and notebooks call: `neuronprof.analyze("trace.parquet", "bottlenecks", MyAnalyzer(), client=client)`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class _Callable(ModuleType):
    def __call__(self, trace: Any, *analyses: Any, workers: int = 1, client: Any = None) -> "dict[str, pd.DataFrame]":
        """The finished tables of analyses; see `neuronprof.analyze.entry.analyze`."""
        from neuronprof.analyze.entry import analyze

        return analyze(trace, *analyses, workers=workers, client=client)


sys.modules[__name__].__class__ = _Callable
