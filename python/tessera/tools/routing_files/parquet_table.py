"""Tables in Parquet, which pyarrow reads: topk_ids by token, or a row for each layer and expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import MAX_EXPERTS, MAX_LAYERS, LayerKey
from tessera.tools.routing_files.kinds import MAX_LOAD
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import Loads, Rows
from tessera.tools.routing_files.source import File, seekable

NAME = (
    "tables as Parquet, with columns topk_ids and, if known, layer; or expert and, if known, layer "
    "and count (pip install pyarrow)"
)
OPTIONS: tuple[str, ...] = ("zero_experts",)
_BATCH_ROWS = 1 << 13


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    return 90 if file.head.startswith(b"PAR1") else 0


def read(file: File, options: Options) -> Rows | Loads:
    """What a file of this form holds.

    Raises:
        ValueError: pyarrow is not installed, or the file has no such columns.
    """
    names = next(_batches(file, None), {})
    if "topk_ids" in names:
        return _ParquetRows(file, options)
    if "expert" in names:
        return _loads(file)
    raise ValueError(
        f"{file.name}: expected a column topk_ids or expert, got {', '.join(names) or 'no rows'}"
    )


def _batches(file: File, columns: tuple[str, ...] | None) -> Iterator[dict[str, Any]]:
    """The next rows, by the name of the column; those of `columns` that there are."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(
            f"{file.name}: pyarrow, which reads Parquet, is not installed: pip install pyarrow, or "
            "pip install '.[parquet]' in a checkout of Tessera"
        ) from None
    with file.open(counted=columns is not None) as stream, seekable(stream) as stored:
        try:
            table = parquet.ParquetFile(stored)
            names = [name for name in table.schema_arrow.names if name in (columns or (name,))]
            for batch in table.iter_batches(_BATCH_ROWS, columns=names):
                yield batch.to_pydict()
        except ArrowException as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(f"{file.name}: expected a Parquet file ({reason})") from None


def _layers(batch: dict[str, Any], count: int) -> list[LayerKey]:
    layers: list[LayerKey] = batch.get("layer") or [None] * count
    return layers


def _loads(file: File) -> Loads:
    found: dict[LayerKey, dict[int, int]] = {}
    num_rows = 0
    for batch in _batches(file, ("expert", "layer", "count")):
        experts = batch["expert"]
        counts = batch.get("count") or [1] * len(experts)
        rows = zip(_layers(batch, len(experts)), experts, counts, strict=True)
        for number, (layer, expert, count) in enumerate(rows, start=num_rows):
            if not isinstance(expert, int) or not 0 <= expert < MAX_EXPERTS:
                raise ValueError(
                    f"{file.name}: row {number}: expert: expected an integer in "
                    f"[0, {MAX_EXPERTS}), got {expert}"
                )
            if not isinstance(count, int) or not 0 <= count < MAX_LOAD:
                raise ValueError(
                    f"{file.name}: row {number}: count: expected an integer in [0, {MAX_LOAD}), "
                    f"got {count}"
                )
            loads = found.setdefault(layer, {})
            loads[expert] = min(loads.get(expert, 0) + count, MAX_LOAD)
        num_rows += len(experts)
        if len(found) > MAX_LAYERS:
            raise ValueError(f"{file.name}: layer: expected at most {MAX_LAYERS}, got more")
    num_experts = 1 + max(max(loads) for loads in found.values())
    layers: dict[LayerKey, npt.NDArray[np.int64]] = {}
    for layer, loads in found.items():
        layers[layer] = np.zeros(num_experts, np.int64)
        layers[layer][list(loads)] = list(loads.values())
    notes = [f"the file does not give the number of experts: {num_experts} is its largest id + 1"]
    if num_rows > sum(map(len, found.values())):
        notes.append(f"the loads are sums over {num_rows} rows")
    return Loads(file.name, NAME, layers, num_rows, notes)


class _ParquetRows(Rows):
    form = NAME

    def read(self) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
        for batch in _batches(self.file, ("topk_ids", "layer")):
            held: dict[LayerKey, list[list[int]]] = {}
            tokens = batch["topk_ids"]
            for layer, ids in zip(_layers(batch, len(tokens)), tokens, strict=True):
                held.setdefault(layer, []).append(ids)
            self.num_lines += len(tokens)
            for layer, rows in held.items():
                yield layer, self._array(rows)

    def _array(self, rows: list[list[int]]) -> npt.NDArray[Any]:
        try:
            ids = np.array(rows)
        except ValueError:
            ids = np.array([])
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"{self.name}: topk_ids: expected lists of integers, all of one length"
            )
        return ids
