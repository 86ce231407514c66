"""Files read as a whole, for commands that need all ids of a layer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey, Progress, widened
from tessera.tools.routing_files import Loads, Options, Rows, layer_name, open_routing
from tessera.tools.routing_files.reading import NO_EXPERT, OUTSIDE


@dataclass(frozen=True)
class Routing:
    """The content of a file.

    name: stands for the file in messages.
    num_experts: from the options, else from the file; None if neither gives it.
    layers: by layer, int32 [tokens, top_k]; -1 for no expert.
    expert_map: int32 [experts], or None.
    notes: sentences about how it was read, and what was left out.
    """

    name: str
    model_id: str | None
    num_experts: int | None
    layers: dict[LayerKey, npt.NDArray[np.int32]]
    expert_map: npt.NDArray[Any] | None
    notes: list[str]


def read_whole(path: Path, options: Options, progress: Progress | None = None) -> Routing:
    """Read all rows of a file.

    Raises:
        ValueError: the file cannot be read, or holds no ids of tokens.
    """
    rows = rows_of(path, options, progress)
    pieces: dict[LayerKey, list[npt.NDArray[np.int32]]] = {}
    for layer, ids in rows.pieces():
        pieces.setdefault(layer, []).append(ids)
    layers = {
        layer: np.concatenate([widened(one, parts[-1].shape[1]) for one in parts])
        for layer, parts in pieces.items()
    }
    return Routing(
        rows.name,
        rows.model_id,
        rows.known_experts,
        layers,
        rows.expert_map,
        [*rows.notes, *_left_out(rows), *_skipped(rows)],
    )


def read_filled(path: Path, options: Options) -> Routing:
    """Read all rows of a file that has an expert in every slot, as what is timed needs it.

    Raises:
        ValueError: the file cannot be read, or an id is not that of an expert.
    """
    routing = read_whole(path, options)
    for layer, ids in routing.layers.items():
        wrong = (ids == NO_EXPERT) | (ids == OUTSIDE)
        if wrong.any():
            where = "" if layer is None else f"{layer_name(layer)}: "
            raise ValueError(
                f"{routing.name}: {where}topk_ids: expected an expert in every slot, since not "
                f"everything that is timed takes -1, got "
                f"{np.count_nonzero(wrong)} slots without one"
            )
    return routing


def rows_of(path: Path, options: Options, progress: Progress | None = None) -> Rows:
    """The rows of a file, as they stream.

    Raises:
        ValueError: the file cannot be read, or holds no ids of tokens.
    """
    found = open_routing(path, options, progress)
    if isinstance(found, Loads):
        raise ValueError(
            f"{found.name}: expected ids of tokens, got loads, which are without tokens: tessera "
            "inspect shows what needs none: load, ranks and placement"
        )
    return found


def _left_out(rows: Rows) -> list[str]:
    excluded = rows.excluded.values()
    counts = {
        "rows of zeros, which no router chose, left out": sum(e.num_unrecorded for e in excluded),
        "rows without any expert left out": sum(e.num_empty for e in excluded),
        "slots without an expert": sum(e.num_unused for e in excluded),
    }
    return [f"{count:,} {what}" for what, count in counts.items() if count]


def _skipped(rows: Rows) -> list[str]:
    return [f"{rows.num_skipped:,} bad lines skipped"] if rows.num_skipped else []
