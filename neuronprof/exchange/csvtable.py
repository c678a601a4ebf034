"""A trace as CSV: a row an event, the columns of the schema; `deps` as numbers between spaces."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from neuronprof.exchange.selected import Selection
from neuronprof.exchange.whole import whole
from neuronprof.trace import schema


def write(selection: Selection, path: Path) -> int:
    """Writes the events; returns how many.

    Raises:
        NeuronprofError: the file cannot be written.
    """
    rows = 0
    plain = pa.schema(
        [
            (name, pa.string() if name in (*schema.STRINGS, "deps") else schema.BY_NAME[name].type)
            for name in schema.NAMES
        ]
    )
    with whole(path) as partial, csv.CSVWriter(partial, plain) as file:
        for table in selection.chips():
            deps = pc.binary_join(table["deps"].combine_chunks().cast(pa.list_(pa.string())), " ")
            table = table.set_column(table.schema.get_field_index("deps"), "deps", deps)
            file.write_table(table.cast(plain))
            rows += table.num_rows
    return rows
