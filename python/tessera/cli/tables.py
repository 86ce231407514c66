"""Standard output, and tables of numbers in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from tessera.tools.printable import printable

WIDTH = 80  # every table fits into this width
_LONGEST_NAME = 40
_ENDLESS = 100_000  # wider than every line


class StandardOutput(Console):
    """Standard output; that its reader has closed it is for the program, as for `print`.

    Lines are as wide as the terminal. Where it is none, as a pipe, nothing is wrapped, unless the
    environment variable COLUMNS gives a width.
    """

    def __init__(self, **options: Any) -> None:
        width = os.environ.get("COLUMNS", "")
        if not sys.stdout.isatty() and not (width.isdecimal() and int(width) > 0):
            options.setdefault("width", _ENDLESS)
        super().__init__(**options)

    def on_broken_pipe(self) -> None:
        """Leave the exception, instead of ending the program with exit code 1."""
        raise  # rich calls it while it handles the exception


def visible(text: str) -> str:
    """Text from a file, of which nothing is markup or moves the cursor."""
    return escape(printable(text))


def in_column(names: Sequence[str]) -> list[str]:
    """Names for a column of a table: an ellipsis takes the middle of long ones.

    It leaves them different: they are cut elsewhere, or not at all, if that would make two equal.
    """
    short = list(names)
    for begin in (_LONGEST_NAME // 2, 3 * _LONGEST_NAME // 4, _LONGEST_NAME // 4):
        end = _LONGEST_NAME - 1 - begin
        cut = [
            f"{name[:begin]}…{name[-end:]}" if len(name) > _LONGEST_NAME else name for name in names
        ]
        if len(set(cut)) == len(set(names)):
            short = cut
            break
    return [visible(name) for name in short]


def number_table(*titles: str) -> Table:
    """A table of these columns of numbers, without lines."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def print_grid(grid: Table) -> None:
    """Print a table of plain text without the spaces that fill its last column up."""
    console = StandardOutput(highlight=False, markup=False, soft_wrap=True)
    with console.capture() as captured:
        console.print(grid, soft_wrap=False)
    console.print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_table(console: Console, table: Table) -> None:
    """Print a table; on a narrow terminal as several, each beginning with the first column.

    Cut to the width, its columns would lose digits. The first column, which may hold long names, is
    folded into what the others leave.
    """
    key, *columns = table.columns
    groups = [[key, *columns]]
    if console.width < WIDTH:
        groups = [[key]]
        for column in columns:
            if len(groups[-1]) > 1 and _width([*groups[-1], column]) > console.width:
                groups.append([key])
            groups[-1].append(column)
    for group in groups:
        part = number_table()
        room = console.width - (_width(group[1:]) + 1 if len(group) > 1 else 0)
        least = Text(str(key.header)).cell_len
        width = min(_width([key]), max(room, least))
        part.add_column(key.header, justify=key.justify, width=width, overflow="fold")
        for column in group[1:]:
            part.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap)
        for cells in zip(*(column.cells for column in group), strict=True):
            part.add_row(*cells)
        console.print(part)


def _width(columns: Sequence[Column]) -> int:
    """The width of the columns side by side, in characters."""
    cells = [[column.header, *column.cells] for column in columns]
    widths = [max(Text.from_markup(str(cell)).cell_len for cell in one) for one in cells]
    return sum(widths) + len(widths) - 1
