"""Values of callers, as messages show them."""

from __future__ import annotations

from numbers import Integral


def printable(text: str) -> str:
    """A text that UTF-8 can hold: lone surrogates, which it cannot, are escaped."""
    return text.encode(errors="backslashreplace").decode()


def shown(value: object) -> str:
    """A value, as Python writes it; but of a long integer the length.

    Python refuses to write integers of thousands of digits, inside of other values, too.
    """
    if isinstance(value, Integral):
        num_bits = int(value).bit_length()
        return str(value) if num_bits <= 128 else f"an integer of {num_bits} bits"
    try:
        return repr(value)
    except ValueError:
        return f"a {type(value).__name__} with an integer of thousands of digits"
