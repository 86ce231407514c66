"""Files read as a whole, for commands that need all ids of a layer at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey, Progress, widened
from tessera.tools.routing_files import Loads, Options, Rows, layer_name
from tessera.tools.routing_files.reading import NO_EXPERT, OUTSIDE
from tessera.tools.routing_files.several import open_several


@dataclass(frozen=True)
class Routing:
    """The content of a file.

    name: stands for the file in messages.
    num_experts: from the options, else from the file; None if neither gives it.
    layers: by layer, int32 [tokens, top_k]; -1 for no expert.
    least_top_k: by layer, ids of the row with the fewest, where rows differ.
    expert_map: int32 [experts], or None.
    notes: sentences about how it was read, and what was left out.
    """

    name: str
    model_id: str | None
    num_experts: int | None
    layers: dict[LayerKey, npt.NDArray[np.int32]]
    least_top_k: dict[LayerKey, int]
    expert_map: npt.NDArray[Any] | None
    notes: list[str]


def read_whole(path: Path, options: Options, progress: Progress | None = None) -> Routing:
    """Read all rows of a file.

    Raises:
        ValueError: the file cannot be read, or holds no ids of tokens.
    """
    return _whole(rows_of([path], options, progress=progress)[0])


def read_experts(
    paths: Sequence[Path], options: Options, together: str | None, *, in_every_slot: bool
) -> list[Routing]:
    """Read all rows of files whose ids are all those of experts.

    Args:
        paths: the files.
        options: how to read them.
        together: as in `open_several`.
        in_every_slot: also refuse slots without an expert.

    Raises:
        ValueError: a file cannot be read, or has such ids or slots.
    """
    found = [_whole(rows) for rows in rows_of(paths, options, together)]
    for routing in found:
        for layer, ids in routing.layers.items():
            where = f"{routing.name}: " + ("" if layer is None else f"{layer_name(layer)}: ")
            if num_outside := int(np.count_nonzero(ids == OUTSIDE)):
                raise ValueError(
                    f"{where}topk_ids: expected ids in [0, {routing.num_experts}), got "
                    f"{num_outside} others"
                )
            num_unused = int(np.count_nonzero(ids == NO_EXPERT))
            if num_unused and in_every_slot:
                raise ValueError(
                    f"{where}topk_ids: expected an expert in every slot, since not everything that "
                    f"is timed takes -1, got {num_unused} slots without one: --op align_block_size "
                    "times them"
                )
    return found


def rows_of(
    paths: Sequence[Path],
    options: Options,
    together: str | None = None,
    progress: Progress | None = None,
) -> list[Rows]:
    """The rows of files, as they stream; `together` as in `open_several`.

    Raises:
        ValueError: a file cannot be read, or holds no ids of tokens.
    """
    found = []
    for one in open_several(paths, options, together, progress):
        if isinstance(one, Loads):
            raise ValueError(
                f"{one.name}: expected ids of tokens, got loads, which are without tokens: tessera "
                "inspect shows what needs none: load, ranks and placement"
            )
        found.append(one)
    return found


def _whole(rows: Rows) -> Routing:
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
        rows.least_top_k,
        rows.expert_map,
        [*rows.notes, *_left_out(rows), *_skipped(rows)],
    )


def _left_out(rows: Rows) -> list[str]:
    excluded = rows.excluded.values()
    counts = {
        "rows of zeros, which no router chose, left out": sum(e.num_unrecorded for e in excluded),
        "rows without any expert left out": sum(e.num_empty for e in excluded),
        "slots without an expert": sum(e.num_unused for e in excluded),
    }
    return [f"{count:,} {_singular(what, count)}" for what, count in counts.items() if count]


def _skipped(rows: Rows) -> list[str]:
    number = rows.num_skipped
    return [f"{number:,} {_singular('bad lines skipped', number)}"] if number else []


def _singular(what: str, count: int) -> str:
    for noun in ("row", "slot", "line"):
        what = what.replace(f"{noun}s", noun) if count == 1 else what
    return what
