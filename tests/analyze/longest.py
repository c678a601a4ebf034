"""An analyzer as a user writes it, in a module of its own; and one that takes its worker with it, once."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from neuronprof.analyze.analyzer import Analyzer


@dataclass(frozen=True)
class Longest(Analyzer):
    """The longest event of each opcode."""

    name: ClassVar[str] = "longest"
    needs: ClassVar[tuple[str, ...]] = ("name",)
    keys: ClassVar[dict[str, tuple[str, ...]]] = {"longest": ("name",)}
    tables: ClassVar[dict[str, tuple[str, ...]]] = {"longest": ("name", "duration_ns")}

    def map(self, chip):
        rows = pd.DataFrame(
            {"name": chip.events.text("name", chip.events["name"]), "duration_ns": chip.events["duration_ns"]}
        )
        return {"longest": rows.groupby("name", as_index=False).max()}

    def combine(self, a, b):
        both = pd.concat([a["longest"], b["longest"]])
        return {"longest": both.groupby("name", as_index=False).max()}

    def finish(self, state, _context):
        return {"longest": state["longest"]}


@dataclass(frozen=True)
class Killer(Longest):
    """Ends the process that maps the first chip, without a word; the marker remembers that it did."""

    marker: str = ""

    def map(self, chip):
        marker = Path(self.marker)
        if not marker.exists():
            marker.touch()
            os._exit(1)
        return super().map(chip)
