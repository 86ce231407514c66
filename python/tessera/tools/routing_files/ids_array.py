"""Ids in NumPy files: [tokens, top_k], [tokens], or all layers of a model as vLLM returns them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey
from tessera.tools.routing_files.arrays import (
    Array,
    arrays_of,
    declared_experts,
    expert_map_of,
    tables_of,
)
from tessera.tools.routing_files.kinds import (
    MOST_LAYERS,
    OR_LOADS,
    are_whole,
    loads_note,
    may_hold_loads,
)
from tessera.tools.routing_files.options import AXES, PHASES, Options
from tessera.tools.routing_files.reading import Rows
from tessera.tools.routing_files.source import File

NAME = (
    "ids [tokens, top_k], [tokens] or vLLM's routed_experts [tokens, layers, top_k], as .npy or "
    ".npz (topk_ids, routed_experts, or an array for each layer)"
)
OPTIONS: tuple[str, ...] = ("axes", "zero_experts", "phase")


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    kinds = {array.kind for array in tables_of(file).values()}
    return 90 if kinds and kinds <= {"ids", "zeros"} else 0


def read(file: File, options: Options) -> Rows:
    """The rows of a file of this form.

    Raises:
        ValueError: `--phase` is given, but the file does not have both.
    """
    phases = _phases(file)
    if options.phase is not None and len(phases) < 2:
        raise ValueError(
            f"{file.name}: --phase: does nothing to ids without prompt_routed_experts and "
            "routed_experts"
        )
    return _ArrayRows(file, options)


def _phases(file: File) -> dict[str, Array]:
    """The arrays of prompt and generation, of a file that has the prompt's."""
    arrays = arrays_of(file)
    names = dict(zip(PHASES, ("prompt_routed_experts", "routed_experts"), strict=True))
    found = {phase: arrays[name] for phase, name in names.items() if name in arrays}
    return found if PHASES[0] in found else {}


class _ArrayRows(Rows):
    form = NAME

    def read(self) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
        self.num_experts = declared_experts(self.file)
        self.expert_map = expert_map_of(self.file)
        tables = tables_of(self.file)
        if phases := _phases(self.file):
            yield from self._of_phases(phases)
            return
        for layer, array in tables.items():
            yield from self._table(layer, array)

    def _of_phases(self, found: dict[str, Array]) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
        sizes = ", ".join(f"{array.shape[0]:,} of {phase}" for phase, array in found.items())
        read = self.options.phase
        how = f"only those of {read} are read" if read else "--phase reads one of them"
        self.notes.append(f"tokens: {sizes}" + (f"; {how}" if len(found) > 1 else ""))
        for phase, array in found.items():
            if read in (None, phase):
                yield from self._table(None, array)

    def _table(self, layer: LayerKey, array: Array) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
        shape = array.shape
        if len(shape) not in (1, 2, 3) or 0 in shape:
            raise array.refuse(
                "[tokens, top_k] or [tokens, layers, top_k], at least one of each", list(shape)
            )
        self.may_be_loads = not array.tells_kind and may_hold_loads(shape)
        is_layers_first = len(shape) == 3 and layers_first(array, self.options, self.notes)
        first = 0
        for piece in array.slices():
            piece = whole_numbers(array, piece)
            if len(shape) < 3:
                rows = piece.reshape(len(piece), array.width)
                self._say_if_open(array, rows)
                self.num_lines += len(rows)
                yield layer, rows
            elif is_layers_first:
                for number, rows in enumerate(piece, start=first):
                    self.num_lines += len(rows)
                    yield number, rows
            else:
                self.num_lines += len(piece)
                for number in range(shape[1]):
                    yield number, piece[:, number]
            first += len(piece)

    def _say_if_open(self, array: Array, rows: npt.NDArray[Any]) -> None:
        if self.known_experts is None and not array.tells_kind:
            note = loads_note(rows, array.shape)
            self.notes += [note] if note and note not in self.notes else []


def layers_first(array: Array, options: Options, notes: list[str]) -> bool:
    """Whether the first axis of three is that of the layers.

    Raises:
        ValueError: the shape leaves it open, and no option says it.
    """
    if options.axes is not None:
        return options.axes == AXES[1]
    if "routed_experts" in array.name:
        return False
    first, second, _ = array.shape
    if first > MOST_LAYERS >= second:
        return False
    if second > MOST_LAYERS >= first:
        notes.append(
            f"{list(array.shape)} is read as [layers, tokens, top_k], since no model has {second} "
            "layers; --axes overrides that"
        )
        return True
    or_loads = OR_LOADS if array.kind == "ids" and not array.tells_kind else ""
    raise array.refuse(
        f"--axes {AXES[0]} or --axes {AXES[1]}, since the shape leaves it open",
        f"{list(array.shape)}{or_loads}",
    )


def whole_numbers(array: Array, piece: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same numbers as integers.

    Raises:
        ValueError: some are none.
    """
    if piece.dtype.kind in "iu":
        return piece
    if piece.dtype.kind == "f" and are_whole(piece):
        return piece.astype(np.int64)
    raise array.refuse("integers", array.dtype)
