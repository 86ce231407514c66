"""Holds the tables of arguments on the ops' pages to the ops' tables in the headers.

A page has one or more tables with these columns, and in them together a row for each argument:

| argument | role | type | shape or range | meaning |

The role is "in", "in, optional", "out" or "out, optional". A row whose role is "Python" is for a
parameter that only the Python function has.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import tessera
from tessera._op import Argument, Length, Op, op_names

PAGES = Path(__file__).parents[2] / "docs" / "ops"
HEADER = "| argument | role | type | shape or range | meaning |"
ROLES = {
    "": "in",  # numbers
    "input": "in",
    "optional_input": "in, optional",
    "output": "out",
    "optional_output": "out, optional",
}
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
PYTHON_TYPES = {"flag": "bool", "float32": "float"}
FLOAT_RANGES = {
    "swiglu_alpha": "finite",
    "swiglu_beta": "finite",
    "swiglu_limit": "positive",
    "routed_scaling_factor": "finite",
}
INT32 = (-(2**31), 2**31 - 1)


def tabled(page: str) -> dict[str, tuple[str, ...]]:
    """The cells after the name, by name, of all tables of arguments on a page."""
    found: dict[str, tuple[str, ...]] = {}
    is_inside = False
    for line in page.splitlines():
        is_inside = line == HEADER or (is_inside and line.startswith("|"))
        if match := re.fullmatch(r"\| `(\w+)` \| (.+) \|", line) if is_inside else None:
            assert match[1] not in found, f"{match[1]} stands twice"
            found[match[1]] = tuple(match[2].split(" | "))
    return found


def expected(op: Op, row: Argument) -> tuple[str, str, str]:
    """Role, type, and shape or range of an argument, as a page has to give them."""
    return ROLES[row.role], type_of(op, row), shape_of(op, row) if row.is_array else range_of(row)


def type_of(op: Op, row: Argument) -> str:
    if not row.is_array:
        return "str" if row.choices else PYTHON_TYPES.get(row.kind, row.kind)
    own = ", ".join(row.dtypes)
    if not row.same_dtype_as:
        return own
    (other,) = (one for one in op.arguments if one.name == row.same_dtype_as)
    is_narrower = not set(other.dtypes) <= set(row.dtypes)
    alternatives = row.other_dtypes + ((f"else {own}",) if is_narrower else ())
    return ", ".join((f"as `{row.same_dtype_as}`", *alternatives))


def shape_of(op: Op, row: Argument) -> str:
    def text(length: Length) -> str:
        name = str(length.constant) if length.symbol is None else op.symbols[length.symbol]
        return f"≥ {name}" if length.bound == "at least" else name

    lengths = [text(length) for length in row.lengths]
    if row.ndim > 0:
        return f"[{', '.join(lengths)}]"
    (length,) = lengths
    if length == "≥ 0":
        return "any"
    return f"{length} element" + ("" if length == "1" else "s")


def range_of(row: Argument) -> str:
    if row.kind == "flag":
        return "–"
    if row.choices:
        return f"one of {len(row.choices)}"
    if row.kind == "float32":  # the table has no ranges of floats: the op has rules of its own
        return FLOAT_RANGES[row.name]
    if (row.low, row.high) == INT32:
        return "any"
    return f"{number(row.low)} … {number(row.high)}"


def number(value: int) -> str:
    """2³⁰ and 2³¹ − 1 rather than all digits."""
    for power, rest in ((value, ""), (value + 1, " − 1")):
        exponent = power.bit_length() - 1
        if exponent >= 10 and power == 2**exponent:
            return f"2{str(exponent).translate(SUPERSCRIPTS)}{rest}"
    return str(value)


def names() -> list[str]:
    """The names of all ops that have a page or a Python function."""
    pages = {page.stem for page in PAGES.glob("*.md")}
    return sorted(pages | {op for op in op_names() if hasattr(tessera, op)})


@pytest.mark.parametrize("name", names())
def test_the_page_has_the_arguments_of_the_header(name: str) -> None:
    op = Op(name)
    found = tabled((PAGES / f"{name}.md").read_text(encoding="utf-8"))
    python = {key for key, cells in found.items() if cells[0] == "Python"}
    assert all(len(cells) == 4 and cells[-1].strip() for cells in found.values())
    assert {key: cells[:3] for key, cells in found.items() if key not in python} == {
        row.name: expected(op, row) for row in op.arguments
    }
    parameters = inspect.signature(getattr(tessera, name)).parameters
    assert python == set(parameters) - {row.name for row in op.arguments} - {"out"}
