import pyarrow as pa
import pytest

from neuronprof.trace import schema

DESIGN = (
    "id step chip core rank engine queue kind name start_ts duration_ns wait_ns wait_for op op_name layer phase source "
    "bytes flops dtype collective replica_group algorithm released_by deps"
)


def test_the_columns_are_those_of_the_design():
    assert " ".join(schema.NAMES) == f"{DESIGN} region operands"


def test_every_column_says_what_it_means():
    assert [c.name for c in schema.COLUMNS if not c.meaning] == []
    for name in ("start_ts", "duration_ns", "wait_ns"):
        assert schema.BY_NAME[name].unit == "ns"
    assert schema.ARROW.field("bytes").metadata == {b"unit": b"B", b"meaning": schema.BY_NAME["bytes"].meaning.encode()}


def test_a_number_without_a_default_must_be_given():
    """Every integer column either has a default, or is required, or counts by itself."""
    numbers = [c for c in schema.COLUMNS if pa.types.is_integer(c.type)]
    assert [c.name for c in numbers if c.default is None and c.name not in schema.REQUIRED] == ["id"]


def test_a_misspelt_column_fails_where_it_is_written():
    assert schema.select("start_ts", "engine") == ("start_ts", "engine")
    with pytest.raises(KeyError, match="start_time"):
        schema.select("start_time")
