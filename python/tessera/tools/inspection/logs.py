"""Reads logs into the document of an inspection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tessera.info import version
from tessera.routing_log import LayerKey, Progress
from tessera.tools.inspection.advice import COST_MODEL, advice
from tessera.tools.inspection.comparison import compare
from tessera.tools.inspection.document import Document, Layer, Log, Model
from tessera.tools.inspection.layer import LayerSums, load_layer
from tessera.tools.inspection.limits import limits
from tessera.tools.routing_files import Loads, Options, Rows, largest_id, layer_name
from tessera.tools.routing_files.reading import is_chosen, require_chosen
from tessera.tools.routing_files.several import and_more, file_names, open_several

# Maximum number of experts in all layers together; each takes some 220 bytes.
MAX_TOTAL_EXPERTS = 1 << 20
# Initial number of experts per layer for a log that does not give their number.
_FIRST_WIDTH = 64


class _Source:
    """A file with rows of tokens, and its counts."""

    def __init__(self, index: int, path: Path, name: str, rows: Rows) -> None:
        self.path = path
        self.name = name
        self.rows = rows
        self.layers: dict[LayerKey, LayerSums] = {}
        self.top_k: dict[LayerKey, int] = {}
        self.largest_id = -1
        self._index = index

    def read(self, keep_repeated: bool, room: int) -> None:
        """Count the rows. `room` is the number of experts that its layers may have together."""
        for layer, topk_ids in self.rows.pieces():
            largest = largest_id(topk_ids)
            known = self.rows.known_experts
            self.largest_id = max(self.largest_id, largest)
            sums = self.layers.get(layer)
            if sums is None:
                sums = LayerSums(self._index, layer, known or _FIRST_WIDTH, keep_repeated)
                self.layers[layer] = sums
                self._check_width(room)
            self.top_k[layer] = topk_ids.shape[1]
            if known is None and largest >= sums.width:
                sums.widen(1 << largest.bit_length())
                self._check_width(room)
            sums.add(topk_ids)
        for sums in self.layers.values():
            sums.close()

    def _check_width(self, room: int) -> None:
        _require_room(self.rows.name, self.total_width(), room)

    @property
    def model(self) -> str | Path:
        """Identifies the model among the models of all logs."""
        return self.rows.model_id or self.path

    def total_width(self) -> int:
        return sum(sums.width for sums in self.layers.values())


def inspect_logs(
    paths: Sequence[Path],
    options: Options | None = None,
    *,
    together: str | None = None,
    keep_repeated: bool = False,
    compared: bool = False,
    progress: Progress | None = None,
) -> Document:
    """Read files of routing, and compute the document.

    Args:
        paths: files in one of the forms of `routing_files.FORMATS`.
        options: how to read them.
        together: what the files are parts of one model as, one of `several.TOGETHER`; None if each
            is a model of its own, or names it.
        compared: also compare the logs, of which there are two.
        keep_repeated: also count runs of equal rows as traffic.
        progress: called now and then with the number of bytes read since the last call.

    Raises:
        ValueError: a file cannot be read, or holds too little or too much.
    """
    options = options or Options()
    sources: list[_Source | Loads] = []
    room = MAX_TOTAL_EXPERTS
    names = file_names(paths)
    if together is not None:
        names = [and_more(names)]
    for index, found in enumerate(open_several(paths, options, together, progress)):
        if isinstance(found, Rows):
            source = _Source(index, paths[index], names[index], found)
            source.read(keep_repeated, room)
            room -= source.total_width()
            sources.append(source)
        else:
            width = sum(map(len, found.layers.values()))
            _require_room(found.name, width, room)
            room -= width
            sources.append(found)

    logs: list[Log] = []
    models: dict[tuple[object, ...], Model] = {}
    with_rows = [one for one in sources if isinstance(one, _Source)]
    for index, one in enumerate(sources):
        if isinstance(one, Loads):
            log, models[index, "loads"] = _of_loads(index, one, names[index], options)
        else:
            log = _log(one, with_rows, options)
            _add_layers(models, one, log)
        logs.append(log)
    for model in models.values():
        model["advice"] = advice(model["layers"]) if model["top_k"] else []
    return {
        "version": version(),
        "logs": logs,
        "models": list(models.values()),
        "comparison": compare(logs, names, list(models.values())) if compared else None,
        "limits": limits(
            logs,
            keep_repeated,
            has_tokens=bool(with_rows),
            has_loads=len(with_rows) < len(sources),
        ),
        "cost_model": COST_MODEL,
    }


def _require_room(name: str, width: int, room: int) -> None:
    if width > room:
        raise ValueError(
            f"{name}: layers: expected at most {MAX_TOTAL_EXPERTS} experts in all layers of all "
            "logs together, got more"
        )


def _add_layers(models: dict[tuple[object, ...], Model], source: _Source, log: Log) -> None:
    for layer, sums in source.layers.items():
        top_k = source.top_k[layer]
        least = source.rows.least_top_k.get(layer, top_k)
        # Where tokens choose different numbers of experts, layers may differ in the largest.
        key = (source.model, log["num_experts"], top_k if least == top_k else None)
        model = models.setdefault(
            key,
            {
                "name": log["model_id"] or source.name,
                "num_experts": log["num_experts"],
                "top_k": top_k,
                "least_top_k": least,
                "layers": [],
                "advice": [],
            },
        )
        model["top_k"] = max(model["top_k"], top_k)
        model["least_top_k"] = min(model["least_top_k"], least)
        model["layers"].append(_figures(source, sums, log["num_experts"]))


def _figures(source: _Source, sums: LayerSums, num_experts: int) -> Layer:
    try:
        return sums.figures(
            num_experts, source.rows.excluded[sums.layer], in_order=source.rows.in_order
        )
    except ValueError as error:
        where = "" if sums.layer is None else f"{layer_name(sums.layer)}: "
        raise ValueError(f"{source.rows.name}: {where}{error}") from None


def _log(source: _Source, sources: Sequence[_Source], options: Options) -> Log:
    rows = source.rows
    num_experts, origin = rows.known_experts, "log" if options.num_experts is None else "--experts"
    if num_experts is None:
        # Layers of one model have the same experts, whichever layer has the largest id.
        origin = "largest id + 1"
        num_experts = 1 + max(
            other.largest_id
            for other in sources
            if other.rows.known_experts is None and other.model == source.model
        )
    return {
        "file": rows.name,
        "model_id": rows.model_id,
        "num_experts": num_experts,
        "num_experts_source": origin,
        "num_lines": rows.num_lines,
        "num_skipped": rows.num_skipped,
        "skipped": rows.skipped,
        "form": rows.form,
        "notes": rows.notes,
    }


def _of_loads(index: int, loads: Loads, name: str, options: Options) -> tuple[Log, Model]:
    require_chosen(loads.name, set(loads.layers), options)
    layers = {layer: one for layer, one in loads.layers.items() if is_chosen(layer, options)}
    num_experts = max(len(counts) for counts in layers.values())
    given = options.num_experts
    if given is not None and given < num_experts:
        raise ValueError(
            f"{loads.name}: --experts: expected {num_experts}, the number of loads, or more, got "
            f"{given}"
        )
    num_experts = given or num_experts
    figures = []
    for layer, counts in layers.items():
        if not counts.any():
            loads.notes.append(f"{layer_name(layer)}: left out: every load is 0")
            continue
        figures.append(load_layer(index, layer, np.pad(counts, (0, num_experts - len(counts)))))
    if not figures:
        raise ValueError(f"{loads.name}: no routing: every load is 0")
    log: Log = {
        "file": loads.name,
        "model_id": None,
        "num_experts": num_experts,
        "num_experts_source": "log" if given is None else "--experts",
        "num_lines": loads.num_lines,
        "num_skipped": 0,
        "skipped": [],
        "form": loads.form,
        "notes": loads.notes,
    }
    model: Model = {
        "name": name,
        "num_experts": num_experts,
        "top_k": 0,
        "least_top_k": 0,
        "layers": figures,
        "advice": [],
    }
    return log, model
