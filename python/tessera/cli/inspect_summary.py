"""What `tessera inspect` shows in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tessera.cli.picture import load_picture
from tessera.inspection.document import BLOCK_SIZES, Document, Layer, Load, Log, Model
from tessera.inspection.load import HOT_OVER_MEAN
from tessera.report.findings import findings
from tessera.report.tables import Advice, advice, comparison, layer_names
from tessera.report.words import plural

_PICTURE, _HOT = "load by expert", "hot (x mean)"
_PICTURE_WIDTH = 16
_UNLIMITED = 1 << 16  # columns
_MAX_HOT_SHOWN = 2
_MAX_SKIPPED_SHOWN = 3
_MAX_NOTES_SHOWN = 4


def print_summary(document: Document) -> None:
    """Print the summary: it reads well from 80 columns on, and in a pipe."""
    console = Console(highlight=False)
    for model in document["models"]:
        layers = model["layers"]
        shown = {layer["log"] for layer in layers}
        of_model = [log for index, log in enumerate(document["logs"]) if index in shown]
        _print_head(console, model, of_model)
        _print_load(console, layers, document["logs"])
        _print_padding(console, model)
        _print_ranks(console, model)
        console.print("What this says", style="bold")
        for finding in findings(model, layer_names(document, model)):
            console.print(f"[bold]{finding.subject}:[/] {escape(finding.text)}")
        console.print()
    cost_model = document["cost_model"]
    console.print("How far to trust the advice", style="bold")
    console.print("It is the block size B with the least cost, in rows of a block:")
    console.print(f"  {cost_model['formula']}")
    for name, value in cost_model["parameters"].items():
        console.print(f"  {name} = {value:g}")
    console.print(f"The model is {cost_model['source']}.")
    for sentence in document["limits"]:
        console.print(f"- {sentence}")


def _print_head(console: Console, model: Model, logs: Sequence[Log]) -> None:
    layers = len(model["layers"])
    console.print(
        f"[bold]{escape(model['name'])}[/bold]: {model['num_experts']} experts, "
        f"top {model['top_k']}, {plural(layers, 'layer')}"
    )
    for log in logs:
        skipped = log["num_skipped"]
        if log["num_experts_source"] == "largest id + 1":
            console.print(
                f"{escape(log['file'])} does not tell the number of experts: "
                f"{log['num_experts']} is the largest id + 1"
            )
        if skipped:
            lines = plural(skipped, "bad line")
            console.print(f"{lines} skipped, the first of them:", style="yellow")
            for message in log["skipped"][:_MAX_SKIPPED_SHOWN]:
                console.print(f"  {escape(message)}")
    console.print()


def _print_table(
    console: Console, columns: Mapping[str, Sequence[str]], spare: Sequence[str] = ()
) -> None:
    """Print columns, cells by title: without the first few of `spare` where there is no room."""
    for num_left_out in range(len(spare) + 1):
        kept = {title: columns[title] for title in columns if title not in spare[:num_left_out]}
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
        for title, cells in kept.items():
            table.add_column(
                title,
                justify="left" if title in (_PICTURE, _HOT) else "right",
                no_wrap=title != _HOT,
                min_width=max(map(len, cells)) if title == _PICTURE else None,
            )
        for row in zip(*kept.values(), strict=True):
            table.add_row(*row)
        if (
            console.measure(table, options=console.options.update(width=_UNLIMITED)).minimum
            <= console.width
        ):
            break
    console.print(table)
    if num_left_out:
        console.print(f"No room here for: {', '.join(spare[:num_left_out])}.")


def _print_load(console: Console, layers: Sequence[Layer], logs: Sequence[Log]) -> None:
    picture_width = _PICTURE_WIDTH + max(0, min(console.width - 80, 3 * _PICTURE_WIDTH))
    loads = [layer["load"] for layer in layers]
    columns = {
        "layer": ["-" if layer["layer"] is None else str(layer["layer"]) for layer in layers],
        "tokens": [f"{layer['num_tokens']:,}" for layer in layers],
        "entropy": [f"{load['entropy_bits']:.2f}" for load in loads],
        "Gini": [f"{load['gini']:.2f}" for load in loads],
        "max/mean": [f"{load['max_over_mean']:.2f}" for load in loads],
        _PICTURE: [
            load_picture(layer["expert_counts"], picture_width, height=1)[0] for layer in layers
        ],
        _HOT: [_hot(load) for load in loads],
        "dead": [str(len(load["dead_experts"])) for load in loads],
    }
    _print_table(console, columns, spare=[_PICTURE, _HOT, "entropy"])
    most = layers[0]["load"]["max_entropy_bits"]
    console.print(
        f"Entropy in bits, at most {most:.2f}; Gini 0 is even; hot is {HOT_OVER_MEAN:g} x the mean "
        "or more; dead has no token."
    )
    notes = [note for layer in layers for note in _notes(layer)]
    for note in notes[:_MAX_NOTES_SHOWN]:
        console.print(note)
    if len(notes) > _MAX_NOTES_SHOWN:
        console.print(f"So in {len(notes) - _MAX_NOTES_SHOWN} more places; --json has them all.")
    console.print()


def _hot(load: Load) -> str:
    hot = [f"{one['expert']} ({one['over_mean']:.1f})" for one in load["hot_experts"]]
    more = len(hot) - _MAX_HOT_SHOWN
    return (" ".join(hot[:_MAX_HOT_SHOWN]) or "none") + (f" +{more}" if more > 0 else "")


def _notes(layer: Layer) -> list[str]:
    """What is to be said of a layer beside its figures."""
    notes = []
    where = "" if layer["layer"] is None else f"Layer {layer['layer']}: "
    with_repeated = layer["load_with_repeated"]
    if with_repeated is not None:
        first = layer["repeated"][0]
        notes.append(
            f"{where}{layer['num_repeated']:,} repeated rows left out as warm-up "
            f"({first['num_tokens']:,} from token {first['first_token']:,} on are "
            f"{_shortened(first['topk_ids'])}). With them max/mean would be "
            f"{with_repeated['max_over_mean']:.2f}."
        )
    if layer["num_invalid_ids"]:
        notes.append(f"{where}{layer['num_invalid_ids']:,} ids outside the experts left out.")
    dead = layer["load"]["dead_experts"]
    if dead:
        notes.append(f"{where}dead experts {_shortened(dead)}.")
    return notes


def _shortened(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (" and more" if len(numbers) > 8 else "")


def _print_padding(console: Console, model: Model) -> None:
    console.print("Padding, percent of slots, by batch and block size", style="bold")
    rows = advice(model)
    columns = {
        "tokens": [f"{'~' if row.extrapolated else ''}{row.batch_size:,}" for row in rows],
        "experts": [f"{row.active_experts:.1f}" for row in rows],
        **{str(size): [_padding(row, size) for row in rows] for size in BLOCK_SIZES},
        "use": [str(row.block_size) for row in rows],
        "blocks": [f"{row.blocks[row.block_size]:,.1f}" for row in rows],
    }
    _print_table(console, columns, spare=["blocks", "experts", "8", "256"])
    console.print(
        "* the block size to use, and blocks of it in a layer; experts: with a token; ~ larger "
        "than a layer's tokens, from their shares. A row is the mean over the full batches of that "
        "size: tokens at a layer's end that fill none are not in it."
    )
    console.print()


def _padding(row: Advice, block_size: int) -> str:
    text = f"{100 * row.padding[block_size]:.1f}"
    return f"[bold green]*{text}[/]" if block_size == row.block_size else text


def _print_ranks(console: Console, model: Model) -> None:
    compared = comparison(model)
    if compared is None:
        return
    console.print("Expert parallelism, largest over mean load of the ranks", style="bold")
    rows = compared.rows.values()
    columns = {"ranks": list(map(str, compared.rows))} | {
        words: [f"{row[name].mean:.2f}" for row in rows]
        for name, words in compared.placements.items()
    }
    _print_table(console, columns)
    console.print(compared.reading)
    console.print()
