"""Formats numbers for the report."""

from __future__ import annotations

import re

from tessera.tools.inspection.document import Model


def number(value: float) -> str:
    """A count: `4,471`; a mean below 100 gets one digit after the point: `12.5`."""
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}"


def percent(share: float) -> str:
    """A share: `87%`; near 0 and 1 with one more digit: `99.6%`."""
    return f"{share:.1%}" if 0 < share < 0.095 or 0.995 > share >= 0.985 else f"{share:.0%}"


def times(ratio: float) -> str:
    """A ratio: `1.31×`, `12.8×`."""
    return f"{ratio:.2f}×" if ratio < 9.995 else f"{ratio:.1f}×"


def plural(count: float, noun: str) -> str:
    """A count with its noun: `1 layer`, `12 layers`."""
    return f"{number(count)} {noun}" + ("" if count == 1 else "s")


def slug(name: str) -> str:
    """A layer's name as a part of a file's name."""
    return re.sub("[^a-z0-9]+", "_", name.lower())


def top_k_words(model: Model) -> str:
    """How many experts a token chooses: `top 8`, `top 4 to 7`, `loads without tokens`."""
    if not model["top_k"]:
        return "loads without tokens"
    if model["least_top_k"] < model["top_k"]:
        return f"top {model['least_top_k']} to {model['top_k']}"
    return f"top {model['top_k']}"
