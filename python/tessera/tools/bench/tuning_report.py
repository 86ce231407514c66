"""Results of the tuning loop for the terminal: one table per layer, times next to the advice."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tessera.tools.bench.judgement import best, speeds
from tessera.tools.bench.problem import MAX_WINDOWS
from tessera.tools.bench.report import cell, kinds_of, print_head, print_remarks, rows
from tessera.tools.report.words import plural


def print_tuning(console: Console, document: Mapping[str, Any]) -> None:
    """Print the complete results."""
    print_head(console, document)
    ((method, meaning),) = document["methods"].items()
    console.print(f"{method}: {meaning}")
    console.print(
        "times are means over windows of consecutive tokens: all of a log's, or a sample of "
        f"{MAX_WINDOWS} with seed {document['seed']}"
    )
    for name, of_layer in itertools.groupby(rows(document), key=lambda row: row["trace"]):
        console.print()
        console.print(f"{name}: {_layer_text(document, name)}")
        console.print(_table(document, method, list(of_layer)))
    model = document["inspection"]["cost_model"]
    parameters = ", ".join(f"{name} = {value:g}" for name, value in model["parameters"].items())
    console.print()
    console.print("blocks, padding: of the mean window of the whole log, timed or not.")
    console.print(
        "cost, advice: what tessera inspect expects of the experts' products over all layers of "
        f"the model, 1.00 is the cheapest; {model['formula']} with {parameters}."
    )
    for line in document["left_out"]:
        console.print(line)
    print_remarks(console, document)


def _layer_text(document: Mapping[str, Any], name: str) -> str:
    layer = document["layers"][name]
    least = f"{layer['least_top_k']} to " if layer["least_top_k"] < layer["top_k"] else ""
    text = f"{layer['num_tokens']} tokens, top {least}{layer['top_k']} of {layer['num_experts']}"
    text += " experts"
    if layer["num_unused"]:
        text += f"; {plural(layer['num_unused'], 'slot')} without an expert"
    if layer["num_repeated"]:
        text += f"; without {layer['num_repeated']} rows of warm-up"
    return text


def _table(document: Mapping[str, Any], method: str, of_layer: list[dict[str, Any]]) -> Table:
    kinds = kinds_of(document)
    has_peers = any(best(speeds(row["us"], method), kinds, "peer") for row in of_layer)
    columns = ["windows", "block", "Tessera", *(["best peer"] if has_peers else []), "floor"]
    table = Table("tokens", box=None, pad_edge=False, header_style="bold")
    for name in [*columns, "blocks", "padding", "cost"]:
        table.add_column(name, justify="right")
    table.add_column("advice")
    size = None
    for row in of_layer:
        times = speeds(row["us"], method)
        ours, peer, floor = (best(times, kinds, kind) for kind in ("tessera", "peer", "floor"))
        is_first, size = row["num_tokens"] != size, row["num_tokens"]
        table.add_row(
            str(size) if is_first else "",
            str(row["num_windows"]) if is_first else "",
            str(row["block_size"]),
            cell(row, ours[0], method) if ours else "-",
            *([cell(row, peer[0], method) if peer else "-"] if has_peers else []),
            cell(row, floor[0], method) if floor else "-",
            f"{row['num_blocks']:.1f}",
            f"{row['padding_share']:.1%}",
            f"{row['relative_cost']:.2f}",
            "use" if row["is_recommended"] else "",
        )
    return table
