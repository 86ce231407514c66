"""The names that callers have for an op and its arguments, in messages."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Where a message has names: of the op and the argument, and of others, in the core's phrases.
_NAMES = re.compile(
    r"^(\w+): (\w+)|(?<=, as )\w+(?= has)|(?<= where )\w+(?= is (?:not )?(?:float8|given|\[))"
)
_SHARED = "memory shared with "


def renamed(message: str, names: Mapping[str, str], op: str | None = None) -> str:
    """A refusal, "op: argument: expected this, got that", with other names.

    What came stays as it is, because it may be the caller's own text, and read like a phrase.

    Args:
        message: the refusal.
        names: the caller's names of arguments, by those in the message.
        op: the caller's name of the op; None: that in the message.
    """

    def name(match: re.Match[str]) -> str:
        if match[1] is None:
            return names.get(match[0], match[0])
        return f"{op or match[1]}: {names.get(match[2], match[2])}"

    expected, got, came = message.partition(", got ")
    if expected.endswith(": expected memory of its own") and came.startswith(_SHARED):
        other = came.removeprefix(_SHARED)
        came = _SHARED + names.get(other, other)
    return _NAMES.sub(name, expected) + got + came
