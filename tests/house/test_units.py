import pytest

from neuronprof import units
from neuronprof.errors import NeuronprofError


def test_printing():
    assert [units.time(t) for t in (0, 999, 1000, 12_340_000, 3_600_000_000_000)] == [
        "0 ns",
        "999 ns",
        "1 us",
        "12.3 ms",
        "3600 s",
    ]
    assert [units.size(b) for b in (0, 1023, 1024, 3 * 2**30, 1.5 * 2**40)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "3 GiB",
        "1.5 TiB",
    ]
    assert units.count(4.026e15, "FLOP/s") == "4.03 PFLOP/s"
    assert units.count(12) == "12"
    assert units.percent(0.4267) == "42.7 %"
    assert [units.span(s) for s in (0.5, 90, 5400, 200_000)] == ["500 ms", "1.5 min", "1.5 h", "2.31 days"]


def test_parsing():
    assert [units.parse_size(t) for t in ("512", "64K", "1.5G", "25MiB", "2 mb")] == [
        512,
        65536,
        1610612736,
        26214400,
        2097152,
    ]
    assert [units.parse_fraction(t) for t in ("2%", "0.02", "0")] == [0.02, 0.02, 0.0]


def test_numbers_are_read_with_their_prefix():
    assert [units.parse_count(t) for t in ("15T", "300m", "1e12", "2.5k", "7")] == [15e12, 300e6, 1e12, 2500, 7]


@pytest.mark.parametrize("text", ["", "T", "many", "-3T", "0", "nan", "inf"])
def test_what_is_no_number_is_one_sentence(text):
    with pytest.raises(NeuronprofError, match="is not a number; write it like 300M"):
        units.parse_count(text)


@pytest.mark.parametrize("text", ["", "big", "1.2.3", "5X"])
def test_what_is_no_size_is_one_sentence(text):
    with pytest.raises(NeuronprofError, match="is not a size"):
        units.parse_size(text)


def test_what_is_no_fraction_is_one_sentence():
    with pytest.raises(NeuronprofError, match="is not a fraction"):
        units.parse_fraction("some")


def test_times_are_read_with_their_unit():
    assert [units.parse_time(t) for t in ("20ms", "1.5 s", "300us", "7ns")] == [20e6, 1.5e9, 300e3, 7]


@pytest.mark.parametrize("text", ["", "20", "ms", "-3ms", "3 hours"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(NeuronprofError, match="is not a duration; write it like 20ms"):
        units.parse_time(text)
