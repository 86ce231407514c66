"""The output of `tessera inspect` in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tessera.cli.picture import load_picture
from tessera.cli.tables import WIDTH, StandardOutput, in_column, number_table, print_table, visible
from tessera.tools.inspection.document import BLOCK_SIZES, Document, Layer, Log, Model
from tessera.tools.inspection.limits import NO_TOKENS
from tessera.tools.inspection.load import HOT_OVER_MEAN
from tessera.tools.report.drift import READING, drift_of
from tessera.tools.report.paragraphs import paragraphs
from tessera.tools.report.tables import advice, comparison, layer_names
from tessera.tools.report.words import plural, top_k_words
from tessera.tools.routing_files.several import file_names

_PICTURE_WIDTH = 16
_MAX_LAYERS_SHOWN = 16  # of more, the most uneven, and the means
_FEW_LAYERS_SHOWN = 8
_MAX_HOT_SHOWN = 2
_MAX_SKIPPED_SHOWN = 3
_MAX_NOTES_SHOWN = 4


def print_summary(document: Document) -> None:
    """Print the summary, as wide as the terminal."""
    console = StandardOutput(highlight=False)
    for model in document["models"]:
        names = layer_names(document, model)
        shown = {layer["log"] for layer in model["layers"]}
        of_model = [log for index, log in enumerate(document["logs"]) if index in shown]
        _print_head(console, model, of_model)
        _print_load(console, model, names, document["logs"])
        if model["top_k"]:
            _print_padding(console, model)
        else:
            console.print(f"Missing: {NO_TOKENS[0].lower()}{NO_TOKENS[1:]}\n")
        _print_ranks(console, model)
        _print_drift(console, model, _in_tables(model["layers"], names))
        console.print("What this says", style="bold")
        for paragraph in paragraphs(model, names):
            console.print(f"[bold]{paragraph.subject}:[/] {visible(paragraph.text)}")
        console.print()
    if any(model["advice"] for model in document["models"]):
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
        f"[bold]{visible(model['name'])}[/bold]: {model['num_experts']} experts, "
        f"{top_k_words(model)}, {plural(layers, 'layer')}"
    )
    for log in logs:
        print_reading(console, log)
    console.print()


def print_reading(console: Console, log: Log) -> None:
    """Print what there is to say on how a log was read."""
    skipped = log["num_skipped"]
    if log["num_experts_source"] == "largest id + 1":
        console.print(
            f"{visible(log['file'])}: the number of experts is not given: "
            f"{log['num_experts']} is the largest id + 1"
        )
    for note in log["notes"]:
        console.print(f"{visible(log['file'])}: {visible(note)}")
    if skipped:
        lines = plural(skipped, "bad line")
        console.print(f"{lines} skipped, the first of them:", style="yellow")
        for message in log["skipped"][:_MAX_SKIPPED_SHOWN]:
            console.print(f"  {visible(message)}")


def _are_told_apart(layers: Sequence[Layer]) -> bool:
    """Whether all layers have different names. Layers of several files may share one."""
    return len({layer["layer"] for layer in layers}) == len(layers)


def _own_name(layer: Layer) -> str:
    return "-" if layer["layer"] is None else str(layer["layer"])


def _in_tables(layers: Sequence[Layer], names: Sequence[str]) -> Sequence[str]:
    """What tables without headings of files call the layers."""
    return [*map(_own_name, layers)] if _are_told_apart(layers) else names


def _print_load(console: Console, model: Model, names: Sequence[str], logs: Sequence[Log]) -> None:
    layers = model["layers"]
    if _are_told_apart(layers):
        _print_load_table(console, layers)
    else:  # the same layers in several files
        for index, file in enumerate(file_names([Path(log["file"]) for log in logs])):
            of_file = [layer for layer in layers if layer["log"] == index]
            if of_file:
                console.print(visible(file), style="bold")
                _print_load_table(console, of_file)
    most = layers[0]["load"]["max_entropy_bits"]
    console.print(
        f"Entropy in bits, at most {most:.2f}; Gini 0 is even; hot is {HOT_OVER_MEAN:g} x the mean "
        "or more; dead has no token."
    )
    notes = [
        visible(note)
        for name, layer in zip(names, layers, strict=True)
        for note in _notes("" if len(layers) == 1 and layer["layer"] is None else name, layer)
    ]
    for note in notes[:_MAX_NOTES_SHOWN]:
        console.print(note)
    if len(notes) > _MAX_NOTES_SHOWN:
        console.print(f"So in {len(notes) - _MAX_NOTES_SHOWN} more places; --json has them all.")
    console.print()


def _print_load_table(console: Console, layers: Sequence[Layer]) -> None:
    table = number_table("layer", "tokens", "entropy", "Gini", "max/mean")
    table.add_column("load by expert", no_wrap=True)
    table.add_column("hot (x mean)")
    table.add_column("dead", justify="right", no_wrap=True)
    picture_width = _PICTURE_WIDTH + max(0, min(console.width - WIDTH, 3 * _PICTURE_WIDTH))
    shown = list(layers)
    if len(layers) > _MAX_LAYERS_SHOWN:
        uneven = sorted(layers, key=lambda layer: -layer["load"]["max_over_mean"])
        shown = [layer for layer in layers if layer in uneven[:_FEW_LAYERS_SHOWN]]
        loads = [layer["load"] for layer in layers]
        means = [
            sum(one[figure] for one in loads) / len(loads)
            for figure in ("entropy_bits", "gini", "max_over_mean")
        ]
        table.add_row("mean", "", *(f"{mean:.2f}" for mean in means))
    for name, layer in zip(in_column([*map(_own_name, shown)]), shown, strict=True):
        load = layer["load"]
        hot = [f"{one['expert']} ({one['over_mean']:.1f})" for one in load["hot_experts"]]
        more = len(hot) - _MAX_HOT_SHOWN
        table.add_row(
            name,
            f"{layer['num_tokens']:,}" if layer["num_tokens"] else "-",
            f"{load['entropy_bits']:.2f}",
            f"{load['gini']:.2f}",
            f"{load['max_over_mean']:.2f}",
            load_picture(layer["expert_counts"], picture_width, height=1)[0],
            (" ".join(hot[:_MAX_HOT_SHOWN]) or "none") + (f" +{more}" if more > 0 else ""),
            str(len(load["dead_experts"])),
        )
    print_table(console, table)
    if len(shown) < len(layers):
        console.print(
            f"The means of all {len(layers)} layers, and the {len(shown)} most uneven; the others "
            "are in --html and --json."
        )


def _notes(name: str, layer: Layer) -> list[str]:
    """Notes on a layer, which begin with its name if it has one."""
    notes = []
    where = f"{name}: " if name else ""
    if isinstance(layer["layer"], int):  # otherwise it is a name, of a layer or a file
        where = where[:1].upper() + where[1:]
    with_repeated = layer["load_with_repeated"]
    if with_repeated is not None:
        first = layer["repeated"][0]
        notes.append(
            f"{where}{layer['num_repeated']:,} repeated rows left out as warm-up "
            f"({first['num_tokens']:,} from token {first['first_token']:,} on are "
            f"{_shortened(first['topk_ids'])}). With them max/mean would be "
            f"{with_repeated['max_over_mean']:.2f}."
        )
    for count, what in (
        ("num_unrecorded", "row of zeros, which no router chose, left out."),
        ("num_empty", "row without any expert left out."),
        ("num_unused", "slot without an expert."),
    ):
        if layer[count]:  # type: ignore[literal-required]
            noun, rest = what.split(" ", 1)
            number = layer[count]  # type: ignore[literal-required]
            notes.append(f"{where}{plural(number, noun)} {rest}")
    if layer["num_invalid_ids"]:
        outside = plural(layer["num_invalid_ids"], "id")
        notes.append(f"{where}{outside} outside the experts left out.")
    dead = layer["load"]["dead_experts"]
    if dead:
        notes.append(f"{where}dead experts {_shortened(dead)}.")
    return notes


def _shortened(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (" and more" if len(numbers) > 8 else "")


def _print_padding(console: Console, model: Model) -> None:
    console.print("Padding, percent of slots, by batch and block size", style="bold")
    table = number_table("tokens", "experts", *map(str, BLOCK_SIZES), "use", "blocks")
    for row in advice(model):
        cells = [
            f"[bold green]*{100 * share:.1f}[/]" if size == row.block_size else f"{100 * share:.1f}"
            for size, share in row.padding.items()
        ]
        table.add_row(
            f"{'~' if row.extrapolated else ''}{row.batch_size:,}",
            f"{row.active_experts:.1f}",
            *cells,
            str(row.block_size),
            f"{row.blocks[row.block_size]:,.1f}",
        )
    print_table(console, table)
    console.print(
        "* the block size to use, and blocks of it in a layer; experts: with a token; ~ larger "
        "than a layer's tokens, from their shares. A row is the mean over the full batches of that "
        "size: tokens at a layer's end that fill none are not in it."
    )
    console.print()


def _print_ranks(console: Console, model: Model) -> None:
    compared = comparison(model)
    if compared is None:
        return
    console.print("Expert parallelism, largest over mean load of the ranks", style="bold")
    table = number_table("ranks", *compared.placements.values())
    for num_ranks, row in compared.rows.items():
        table.add_row(str(num_ranks), *(f"{row[name].mean:.2f}" for name in compared.placements))
    print_table(console, table)
    console.print(compared.reading)
    console.print()


def _print_drift(console: Console, model: Model, names: Sequence[str]) -> None:
    found = drift_of(model, names)
    if found is None:
        return
    console.print(f"Drift, distances of the load of {found.windows}", style="bold")
    table = number_table()
    table.add_column("layer")
    for title in ("neighbours", "largest", "first-last", "by chance"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("moved most (x mean)", no_wrap=True)
    rows = [found.mean] * (found.num_layers > 1) + found.most
    for name, row in zip(in_column([row.name for row in rows]), rows, strict=True):
        table.add_row(
            name,
            f"{row.between:.3f}",
            f"{row.largest:.3f}",
            f"{row.first_to_last:.3f}",
            f"{row.by_chance:.3f}",
            ", ".join(row.moved[:2]),
        )
    print_table(console, table)
    if found.num_layers > len(found.most):
        console.print(f"The {len(found.most)} layers with the most drift of {found.num_layers}.")
    console.print(READING)
    console.print()
