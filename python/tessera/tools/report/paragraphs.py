"""What an inspection found, in words: a few plain sentences about a model, with figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tessera.tools.inspection.document import Layer, Model
from tessera.tools.report.drift import drift_words
from tessera.tools.report.tables import Comparison, advice, advice_runs, comparison, on_all_tokens
from tessera.tools.report.words import number, percent, plural, times

_FEW = 3  # up to this many layers are described one by one
_TOLD_RANKS = 8
_SAME_COST = 0.02  # less than the difference between the model and a measurement


class Paragraph(NamedTuple):
    """One paragraph: its subject, and the sentences."""

    subject: str
    text: str


def paragraphs(model: Model, names: Sequence[str]) -> list[Paragraph]:
    """All paragraphs on a model; `names` are the names of its layers."""
    layers = list(zip(names, model["layers"], strict=True))
    said = _load(layers)
    if model["top_k"]:
        said.append(Paragraph("Block size", _block_size(model)))
    compared, whole = comparison(model), on_all_tokens(model)
    if compared and whole:
        said.append(Paragraph("Expert parallelism", _ranks(compared, whole)))
    if model["top_k"]:
        said.append(Paragraph("Drift", drift_words(model, names)))
    return said + _left_out(layers)


def _load(layers: Sequence[tuple[str, Layer]]) -> list[Paragraph]:
    dead = [Paragraph("Dead experts", _dead(layers))]
    if len(layers) <= _FEW:
        hot = (_hot(f"In {name}, " if len(layers) > 1 else "", layer) for name, layer in layers)
        return [Paragraph("Hot experts", " ".join(hot)), *dead]
    name, worst = max(layers, key=lambda one: one[1]["load"]["max_over_mean"])
    with_hot = sum(bool(layer["load"]["hot_experts"]) for _, layer in layers)
    text = (
        f"{number(with_hot)} of {plural(len(layers), 'layer')} have an expert with at least twice "
        "the mean load. "
    )
    return [Paragraph("Hot experts", text + _hot(f"Most uneven is {name}: ", worst)), *dead]


def _hot(where: str, layer: Layer) -> str:
    load, counts = layer["load"], layer["expert_counts"]
    if not load["hot_experts"]:
        text = (
            f"{where}no expert takes twice the mean load; the most loaded, expert "
            f"{counts.index(max(counts))}, takes {times(load['max_over_mean'])} the mean."
        )
        return text[0].upper() + text[1:]
    first, *others = load["hot_experts"]
    text = (
        f"{where}expert {first['expert']} takes {percent(first['share'])} of all pairs of a token "
        f"and an expert, {times(first['over_mean'])} the mean."
    )
    if others:
        listed = ", ".join(f"{one['expert']} ({times(one['over_mean'])})" for one in others)
        text += f" Also at least twice the mean: {listed}."
    return text[0].upper() + text[1:]


def _dead(layers: Sequence[tuple[str, Layer]]) -> str:
    found = [(name, layer["load"]["dead_experts"]) for name, layer in layers]
    found = [(name, dead) for name, dead in found if dead]
    if not found:
        return "Every expert gets tokens" + (" in every layer." if len(layers) > 1 else ".")
    if len(found) > _FEW:
        total = number(sum(len(dead) for _, dead in found))
        return (
            f"{len(found)} of {plural(len(layers), 'layer')} have experts that get no token, "
            f"{total} in all."
        )
    said = []
    for name, dead in found:
        where = f" in {name}" if len(layers) > 1 else ""
        listed = ", ".join(map(str, dead[:10])) + (" and more" if len(dead) > 10 else "")
        said.append(f"{plural(len(dead), 'expert')}{where} with no token: {listed}.")
    return " ".join(said)


def _block_size(model: Model) -> str:
    runs = advice_runs(advice(model))
    parts = list[str]()
    for run in runs:
        first, last = run[0].batch_size, run[-1].batch_size
        batches = number(first) if first == last else f"{number(first)} to {number(last)}"
        if not parts:
            batches = f"batches of {batches} token" + ("" if last == 1 else "s")
        parts.append(f"{run[0].block_size} for {batches}")
    row = runs[0][-1]
    best, largest = row.block_size, max(row.padding)
    text = (
        f"Use block size {', '.join(parts)}. For instance, a batch of "
        f"{plural(row.batch_size, 'token')} gives each of its {number(row.active_experts)} active "
        f"experts {plural(row.pairs_per_expert, 'pair')}: with block size {best}, "
        f"{percent(row.padding[best])} of the slots are padding; with {largest}, "
        f"{percent(row.padding[largest])}, at {times(row.costs[largest] / row.costs[best])} the "
        "modelled cost."
    )
    alike = [
        str(size)
        for size, cost in row.costs.items()
        if size != best and abs(cost / row.costs[best] - 1) <= _SAME_COST
    ]
    if alike:
        listed = " and ".join(filter(None, (", ".join(alike[:-1]), alike[-1])))
        text += f" There {listed} cost the same as {best}, within {_SAME_COST:.0%}."
    return text


def _ranks(compared: Comparison, whole: Comparison) -> str:
    ranks = _TOLD_RANKS if _TOLD_RANKS in whole.rows else max(whole.rows)
    row, row_of_all = compared.rows[ranks], whole.rows[ranks]
    text = (
        f"On {compared.tokens} the busiest of {plural(ranks, 'rank')} has "
        f"{times(row['contiguous'].mean)} the mean load with contiguous placement"
    )
    if "balanced" in row:
        text += f", {times(row['balanced'].mean)} with a balanced one made by the first half,"
    text += (
        f" and {times(row['in_hindsight'].mean)} with one balanced in hindsight, by the same tokens"
    )
    text += f"{_in_the_mean(compared)}.{_worse(compared)}"
    if "balanced" not in row:
        return f"{text} There are {compared.too_few} to hold out."
    if compared.num_too_short:
        too_short = plural(compared.num_too_short, "layer")
        text += f" Too few tokens to hold out in {too_short}."
    return (
        f"{text} On {whole.tokens} it is {times(row_of_all['contiguous'].mean)} with contiguous "
        f"placement and {times(row_of_all['in_hindsight'].mean)} in hindsight{_in_the_mean(whole)}."
    )


def _in_the_mean(compared: Comparison) -> str:
    layers = compared.num_layers
    return f", in the mean over {plural(layers, 'layer')}" if layers > 1 else ""


def _worse(compared: Comparison) -> str:
    """The numbers of ranks for which the other placements are worse than the contiguous one."""
    text = ""
    for name, words in (
        ("balanced", "Balanced placement is worse than contiguous on"),
        ("in_hindsight", "Even in hindsight the balanced one, which is greedy, is worse on"),
    ):
        worse = [
            str(ranks)
            for ranks, row in compared.rows.items()
            if name in row and round(row[name].mean, 2) > round(row["contiguous"].mean, 2)
        ]
        if worse:
            listed = " and ".join(filter(None, (", ".join(worse[:-1]), worse[-1])))
            text += f" {words} {listed} ranks."
    return text


def _left_out(layers: Sequence[tuple[str, Layer]]) -> list[Paragraph]:
    said = []
    repeated = [(name, layer) for name, layer in layers if layer["num_repeated"]]
    if repeated:
        rows = sum(layer["num_repeated"] for _, layer in repeated)
        whole = rows + sum(layer["num_tokens"] for _, layer in repeated)
        text = (
            f"{number(rows)} rows of {number(whole)} ({percent(rows / whole)}) stand in runs of "
            "equal rows, as an engine's warm-up makes them. They are not traffic, and are left "
            "out of all figures."
        )
        for name, layer in repeated[:_FEW]:
            other = layer["load_with_repeated"]
            if other and other["hot_experts"]:
                where = f"in {name} " if len(layers) > 1 else ""
                text += (
                    f" With them, {where}expert {other['hot_experts'][0]['expert']} would seem to "
                    f"take {times(other['max_over_mean'])} the mean."
                )
        said.append(Paragraph("Repeated rows", text))
    for count, words in (
        ("num_unrecorded", "of zeros, which no router chose,"),
        ("num_empty", "without any expert"),
    ):
        rows = sum(layer[count] for _, layer in layers)  # type: ignore[literal-required]
        if rows:
            text = f"{plural(rows, 'row')} {words} are left out of all figures."
            said.append(Paragraph("Rows left out", text))
    invalid = sum(layer["num_invalid_ids"] for _, layer in layers)
    if invalid:
        text = f"{plural(invalid, 'id')} outside the experts are left out of all figures."
        said.append(Paragraph("Invalid ids", text))
    return said
