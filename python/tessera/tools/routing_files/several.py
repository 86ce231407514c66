"""Several files as one: ranks that recorded different tokens, or layers of a file each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import Excluded, Loads, Rows

RANKS, LAYERS = "ranks", "layers"
# None of these: every file is a model of its own, unless its log names the same model as another.
TOGETHER = (RANKS, LAYERS)


def joined(files: Sequence[Rows | Loads], how: str, options: Options) -> Rows:
    """The rows of all files, one file after the other.

    Args:
        files: at least one.
        how: `RANKS`, whose layers of the same name are one; or `LAYERS`, a layer each.
        options: how they are read.

    Raises:
        ValueError: one of them holds no tokens.
    """
    rows = [one for one in files if isinstance(one, Rows)]
    for one in files:
        if isinstance(one, Loads):
            raise ValueError(f"{one.name}: --files {how}: expected ids of tokens, got loads")
    return _Joined(rows, how, options)


class _Joined(Rows):
    def __init__(self, files: Sequence[Rows], how: str, options: Options) -> None:
        super().__init__(files[0].file, options)
        self.name = ", ".join(one.name for one in files)
        self.form = files[0].form
        self._files = files
        self._how = how
        self._top_k: dict[LayerKey, int] = {}

    def pieces(self) -> Iterator[tuple[LayerKey, npt.NDArray[np.int32]]]:
        for number, rows in enumerate(self._files):
            for layer, ids in rows.pieces():
                self._agree(rows, is_first=number == 0)
                name = self._named(rows, layer)
                if self._top_k.setdefault(name, ids.shape[1]) != ids.shape[1]:
                    raise ValueError(
                        f"{rows.name}: --files {self._how}: expected {self._top_k[name]} ids for "
                        f"each token, as before, got {ids.shape[1]}"
                    )
                yield name, ids
            self._take(rows)

    def _named(self, rows: Rows, layer: LayerKey) -> LayerKey:
        if self._how == RANKS:
            return layer
        stem = rows.file.path.stem
        return stem if layer is None else f"{stem} layer {layer}"

    def _agree(self, rows: Rows, *, is_first: bool) -> None:
        if is_first:
            self.model_id, self.num_experts = rows.model_id, rows.num_experts
        elif rows.num_experts != self.num_experts or rows.model_id != self.model_id:
            raise ValueError(
                f"{rows.name}: --files {self._how}: expected the model and number of experts of "
                f"{self._files[0].name}, {self.model_id} and {self.num_experts}, got "
                f"{rows.model_id} and {rows.num_experts}"
            )

    def _take(self, rows: Rows) -> None:
        self.num_lines += rows.num_lines
        self.num_skipped += rows.num_skipped
        self.skipped += rows.skipped
        self.notes += [note for note in rows.notes if note not in self.notes]
        for layer, excluded in rows.excluded.items():
            one = self.excluded.setdefault(self._named(rows, layer), Excluded())
            one.num_unrecorded += excluded.num_unrecorded
            one.num_empty += excluded.num_empty
            one.num_unused += excluded.num_unused
            one.num_rows += excluded.num_rows
        for layer, least in rows.least_top_k.items():
            name = self._named(rows, layer)
            self.least_top_k[name] = min(least, self.least_top_k.get(name, least))
