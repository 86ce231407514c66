"""Text from files, such as names of layers, as a terminal may show it."""

from __future__ import annotations

import unicodedata

# Control characters, those that change the direction of text, and ends of lines.
_REPLACED = ("Cc", "Cf", "Zl", "Zp")


def printable(text: str) -> str:
    r"""The text with escapes such as \x1b for what a terminal would obey rather than show."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in _REPLACED else one
        for one in text
    )
