"""Microseconds as traces write them, in whole nanoseconds."""

from decimal import Decimal, InvalidOperation
from typing import Any


def nanoseconds(microseconds: Any) -> int | None:
    """Microseconds, a number or its text, as nanoseconds; exact to the last digit that is written, None for what is no number.

    '1712195495505582.988' is 1712195495505582988, which no float holds.
    """
    if type(microseconds) is int:
        return microseconds * 1000
    text = str(microseconds)
    whole, _, part = text.partition(".")
    if len(part) == 3 and part.isdecimal() and whole.isdecimal():
        return int(whole + part)
    try:
        return int((Decimal(text) * 1000).to_integral_value())
    except (InvalidOperation, ValueError, OverflowError):
        return None
