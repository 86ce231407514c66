"""What the report says first: a few plain sentences about a model, with their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tessera.report.tables import advice, advice_runs, imbalance
from tessera.report.words import number, percent, plural, times

_FEW = 3  # as many layers are told one by one
_TOLD_RANKS = 8


class Finding(NamedTuple):
    """One paragraph: what it is about, and the sentences."""

    subject: str
    text: str


def findings(model: Mapping[str, Any], names: Sequence[str]) -> list[Finding]:
    """All that there is to say; `names` are those of the model's layers."""
    layers = list(zip(names, model["layers"], strict=True))
    said = [*_load(layers), Finding("Block size", _block_size(model))]
    if model["layers"][0]["ranks"]:
        said.append(Finding("Expert parallelism", _ranks(model)))
    return said + _left_out(layers)


def _load(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Finding]:
    if len(layers) <= _FEW:
        hot = " ".join(_hot(name if len(layers) > 1 else "", layer) for name, layer in layers)
        dead = " ".join(_dead(name if len(layers) > 1 else "", layer) for name, layer in layers)
        return [Finding("Hot experts", hot), Finding("Dead experts", dead)]
    name, worst = max(layers, key=lambda one: one[1]["load"]["max_over_mean"])
    with_hot = sum(bool(layer["load"]["hot_experts"]) for _, layer in layers)
    with_dead = [layer["load"]["dead_experts"] for _, layer in layers]
    num_dead = sum(map(bool, with_dead))
    return [
        Finding(
            "Hot experts",
            f"{with_hot} of {plural(len(layers), 'layer')} have an expert with at least twice the "
            f"mean load. Most uneven is {name}. " + _hot("", worst),
        ),
        Finding(
            "Dead experts",
            f"{num_dead} of {plural(len(layers), 'layer')} have experts that get no token, "
            f"{number(sum(map(len, with_dead)))} in all."
            if num_dead
            else "In every layer every expert gets tokens.",
        ),
    ]


def _hot(name: str, layer: Mapping[str, Any]) -> str:
    load, where = layer["load"], f"in {name} " if name else ""
    hot = load["hot_experts"]
    if not hot:
        counts = layer["expert_counts"]
        text = (
            f"{where}no expert takes twice the mean load: the most loaded, expert "
            f"{counts.index(max(counts))}, takes {times(load['max_over_mean'])} the mean."
        )
    else:
        first, others = hot[0], hot[1:]
        text = (
            f"{where}expert {first['expert']} takes {percent(first['share'])} of all pairs of a "
            f"token and an expert, {times(first['over_mean'])} the mean."
        )
        if others:
            listed = ", ".join(f"{one['expert']} ({times(one['over_mean'])})" for one in others)
            text += f" Also at least twice the mean: {listed}."
    return text[0].upper() + text[1:]


def _dead(name: str, layer: Mapping[str, Any]) -> str:
    dead, where = layer["load"]["dead_experts"], f"In {name} " if name else ""
    if not dead:
        return f"{where}{'e' if name else 'E'}very expert gets tokens."
    listed = ", ".join(map(str, dead[:10])) + (" and more" if len(dead) > 10 else "")
    count = f"{number(len(dead))} of {plural(len(layer['expert_counts']), 'expert')}"
    return f"{where}{count} get no token: {listed}."


def _block_size(model: Mapping[str, Any]) -> str:
    runs = advice_runs(advice(model))
    parts = []
    for run in runs:
        first, last = run[0].batch_size, run[-1].batch_size
        batches = number(first) if first == last else f"{number(first)} to {number(last)}"
        parts.append(f"{run[0].block_size} for {batches}")
    row = runs[0][-1]
    largest = max(row.padding)
    return (
        f"Use {', '.join(parts)} tokens in a batch. For instance, a batch of "
        f"{plural(row.batch_size, 'token')} gives each of its {number(row.active_experts)} active "
        f"experts {number(row.pairs_per_expert)} pairs: with block size {row.block_size}, "
        f"{percent(row.padding[row.block_size])} of the slots are padding; with {largest}, "
        f"{percent(row.padding[largest])} would be."
    )


def _ranks(model: Mapping[str, Any]) -> str:
    rows = imbalance(model)
    ranks = _TOLD_RANKS if _TOLD_RANKS in rows else max(rows)
    row = rows[ranks]
    where = " in the mean over the layers" if len(model["layers"]) > 1 else ""
    text = (
        f"On {ranks} ranks the busiest has {times(row['contiguous'].mean)} the mean load{where} "
        f"with contiguous placement, {times(row['balanced'].mean)} with balanced placement"
    )
    if "balanced_held_out" in row:
        text += (
            f". Placed by the first half of the tokens and judged on the second, balanced "
            f"placement has {times(row['balanced_held_out'].mean)}"
        )
    return text + "."


def _left_out(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Finding]:
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
        said.append(Finding("Repeated rows", text))
    invalid = sum(layer["num_invalid_ids"] for _, layer in layers)
    if invalid:
        text = f"{plural(invalid, 'id')} outside the experts are left out of all figures."
        said.append(Finding("Invalid ids", text))
    return said
