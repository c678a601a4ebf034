"""Numbers with units, read and printed. Nothing else in the package formats a quantity."""

import re

from neuronprof.errors import NeuronprofError

_TIME = (("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000))
_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DECIMAL = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def time(ns: float) -> str:
    """A duration in the largest unit that keeps it above one, three significant digits: 12_340_000 is '12.3 ms'."""
    name, scale = next(((n, s) for n, s in reversed(_TIME) if abs(ns) >= s), _TIME[0])
    return f"{_digits(ns / scale)} {name}"


def span(seconds: float) -> str:
    """How long a job takes, in days or hours where it takes as long: 200_000 is '2.31 days'."""
    for name, scale in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= scale:
            return f"{_digits(seconds / scale)} {name}"
    return time(seconds * 1e9)


def size(count: float) -> str:
    """Bytes in binary units: 3 * 2**30 is '3 GiB'."""
    for name in "TGMK":
        if abs(count) >= _BYTES[name]:
            return f"{_digits(count / _BYTES[name])} {name}iB"
    return f"{count:.0f} B"


def count(number: float, unit: str = "") -> str:
    """A number in decimal units: 4.03e15 with unit 'FLOP/s' is '4.03 PFLOP/s'."""
    scale, prefix = next(((s, p) for s, p in _DECIMAL if abs(number) >= s), (1.0, ""))
    return f"{_digits(number / scale)} {prefix}{unit}".rstrip()


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal: 0.4267 is '42.7 %'."""
    return f"{100 * fraction:.1f} %"


def parse_size(text: str) -> int:
    """Bytes from '512', '64K', '1.5G', '25MiB'.

    Raises:
        NeuronprofError: the text is not a size.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not match:
        raise NeuronprofError(f"'{text}' is not a size in bytes; write it like 512, 64K, 1.5G or 25MiB.")
    return int(float(match[1]) * _BYTES[match[2].upper()])


def parse_count(text: str) -> float:
    """A number from '15T', '300M' or '1e12', in decimal units.

    Raises:
        NeuronprofError: the text is no number above zero.
    """
    scales = {prefix.upper(): scale for scale, prefix in _DECIMAL}
    digits, scale = (
        (text[:-1], scales[text[-1:].upper()]) if text[-1:].isalpha() and text[-1:].upper() in scales else (text, 1.0)
    )
    try:
        number = float(digits) * scale
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise NeuronprofError(f"'{text}' is not a number; write it like 300M, 15T or 1e12.")
    return number


def parse_fraction(text: str) -> float:
    """A fraction from '2%' or '0.02'.

    Raises:
        NeuronprofError: the text is not a number.
    """
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise NeuronprofError(f"'{text}' is not a fraction; write it like 2% or 0.02.") from None


def parse_time(text: str) -> float:
    """Nanoseconds from '20ms', '1.5 s' or '300us'.

    Raises:
        NeuronprofError: the text is not a duration.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(ns|us|ms|s)\s*", text)
    if not match:
        raise NeuronprofError(f"'{text}' is not a duration; write it like 20ms, 300us or 1.5s.")
    return float(match[1]) * dict(_TIME)[match[2]]


def _digits(number: float) -> str:
    decimals = 2 if abs(number) < 10 else 1 if abs(number) < 100 else 0
    text = f"{number:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
