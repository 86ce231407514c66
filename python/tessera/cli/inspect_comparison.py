"""The output of `tessera inspect --compare` in a terminal."""

from __future__ import annotations

from rich.console import Console

from tessera.cli.inspect_summary import print_reading
from tessera.cli.tables import StandardOutput, in_column, number_table, print_table, visible
from tessera.tools.inspection.document import Comparison, Document
from tessera.tools.report.compared import (
    READING,
    advice_rows,
    expert_rows,
    figure_rows,
    findings,
    rank_rows,
    sides,
)
from tessera.tools.report.words import plural


def print_comparison(document: Document) -> None:
    """Print the comparison, as wide as the terminal."""
    compared = document["comparison"]
    assert compared is not None
    console = StandardOutput(highlight=False)
    for side in sides(compared):
        console.print(visible(side), style="bold")
    for log in document["logs"]:
        print_reading(console, log)
    _print_load(console, compared)
    _print_ranks(console, compared)
    _print_advice(console, compared)
    console.print("\nWhat this says", style="bold")
    for sentence in findings(compared):
        console.print(visible(sentence))
    for note in compared["notes"]:
        console.print(visible(f"- {note}"))
    console.print(READING)


def _print_load(console: Console, compared: Comparison) -> None:
    layers = compared["num_layers"]
    over = f", means over {plural(layers, 'layer')}" if layers > 1 else ""
    console.print(f"\nLoad{over}", style="bold")
    table = number_table()
    table.add_column("")
    for title in ("first", "second", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in figure_rows(compared):
        table.add_row(*row)
    print_table(console, table)
    changed = expert_rows(compared)
    if changed:
        console.print("\nExperts whose load changed most, over the mean load", style="bold")
        table = number_table("expert", "first", "second", "change")
        table.add_column("layer")
        for name, (_, row) in zip(in_column([layer for layer, _ in changed]), changed, strict=True):
            table.add_row(*row, name or "-")
        print_table(console, table)


def _print_ranks(console: Console, compared: Comparison) -> None:
    rows = rank_rows(compared)
    if not rows:
        return
    console.print("\nExpert parallelism, largest over mean load of the ranks", style="bold")
    by_first = ["second by first"] if rows[0].by_first else []
    table = number_table("ranks", "contiguous 1st", "2nd", "in hindsight 1st", "2nd", *by_first)
    for row in rows:
        table.add_row(
            row.num_ranks,
            row.contiguous.first,
            row.contiguous.second,
            row.in_hindsight.first,
            row.in_hindsight.second,
            *([row.by_first] if by_first else []),
        )
    print_table(console, table)


def _print_advice(console: Console, compared: Comparison) -> None:
    rows = advice_rows(compared)
    if not rows:
        return
    console.print("\nBlock size to use, and its padding", style="bold")
    table = number_table("tokens", "block size 1st", "2nd", "padding 1st", "2nd", "")
    for row in rows:
        cells = [row.batch_size, row.first, row.second, row.first_padding, row.second_padding]
        table.add_row(*cells, "differs" if row.differs else "")
    print_table(console, table)
