"""Integers on a command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable

MAX_INT = 2**31 - 1
MAX_SEED = 2**63 - 1


def integer(least: int, most: int = MAX_INT) -> Callable[[str], int]:
    """An argument type: integers in [least, most]."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"expected an integer in [{least}, {most}], got '{text}'"
            )
        return value

    return parse


seed = integer(0, MAX_SEED)
