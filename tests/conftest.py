"""What all tests share: quick, repeatable hypothesis runs, and traces made from pictures."""

import hypothesis
import picture
import pytest

hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=60, database=None)
hypothesis.settings.load_profile("house")


@pytest.fixture
def trace(tmp_path):
    """Makes a trace of events and opens it: trace(events, segments, **metadata)."""
    from neuronprof.trace.reader import open_trace

    def make(events, segments=None, **metadata):
        return open_trace(picture.write(tmp_path / "trace.parquet", events, segments, **metadata))

    return make
