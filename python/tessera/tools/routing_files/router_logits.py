"""Router logits [tokens, experts], from which `--top-k` experts are chosen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera import select_experts
from tessera.routing_log import LayerKey
from tessera.tools.routing_files.arrays import Array, tables_of
from tessera.tools.routing_files.ids_array import layers_first
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import NO_EXPERT, Rows
from tessera.tools.routing_files.source import File

NAME = "router logits [tokens, experts], with --top-k, as .npy or .npz"
OPTIONS: tuple[str, ...] = ("axes", "top_k")


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    return 90 if {array.kind for array in tables_of(file).values()} == {"logits"} else 0


def read(file: File, options: Options) -> Rows:
    """The rows of a file of this form.

    Raises:
        ValueError: `--top-k` is missing.
    """
    if options.top_k is None:
        array = next(iter(tables_of(file).values()))
        raise ValueError(
            f"{file.name}: router logits {list(array.shape)}{_integers(array)}: expected "
            "--top-k, the number of experts that the router chooses for each token"
        )
    return _LogitRows(file, options)


def _integers(array: Array) -> str:
    """What there is to say on logits that are integers, which are told by their signs."""
    is_real = array.dtype.kind == "f"
    return "" if is_real else f", of {array.dtype}, a quarter or more of them below -1"


class _LogitRows(Rows):
    form = NAME
    without_experts = "NaN or -inf, from which nothing can be chosen"

    def read(self) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
        self.notes.append("the experts are chosen from logits, by softmax, without bias or groups")
        for layer, array in tables_of(self.file).items():
            self.num_experts = array.width
            if integers := _integers(array):
                self.notes.append(f"read as router logits{integers}")
            is_first = len(array.shape) == 3 and layers_first(array, self.options, self.notes)
            first = 0
            for piece in array.slices():
                if len(array.shape) == 2:
                    yield layer, self._chosen(piece)
                elif is_first:
                    for number, rows in enumerate(piece, start=first):
                        yield number, self._chosen(rows)
                else:
                    for number in range(array.shape[1]):
                        yield number, self._chosen(piece[:, number])
                first += len(piece)

    def _chosen(self, logits: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        self.num_lines += len(logits)
        top_k = self.options.top_k or 1
        with np.errstate(over="ignore"):  # larger ones become infinite
            logits = np.ascontiguousarray(logits, np.float32)
        try:
            found: npt.NDArray[np.int32] = np.array(select_experts(logits, top_k=top_k).topk_ids)
        except ValueError as error:
            raise ValueError(f"{self.name}: --top-k {top_k}: {error}") from None
        # NaN counts as -inf: of nothing else, the choice would be of the first experts.
        found[np.count_nonzero(logits > -np.inf, axis=1) == 0] = NO_EXPERT
        return found
