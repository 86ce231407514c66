"""What SGLang's expert distribution recorder saves with torch, in both of its modes.

Read as data alone: files that would need objects of Python are refused, since unpickling them may
run code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey
from tessera.tools.routing_files.arrays import ZIP
from tessera.tools.routing_files.kinds import MAX_LOAD
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import Loads, Rows
from tessera.tools.routing_files.source import File, seekable

NAME = (
    "files of SGLang's expert distribution recorder, .pt, with records of topk_ids_of_layer or "
    "with logical_count"
)
OPTIONS: tuple[str, ...] = ("zero_experts",)
_TENSORS = "topk_ids_of_layer"


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    if not file.head.startswith(ZIP):
        return 0
    with file.open(counted=False) as stream, zipfile.ZipFile(seekable(stream)) as archive:
        return 90 if any(name.endswith("/data.pkl") for name in archive.namelist()) else 0


def read(file: File, options: Options) -> Rows | Loads:
    """What a file of this form holds.

    Raises:
        ValueError: torch is not installed, or the file holds something else.
    """
    content = _loaded(file)
    if isinstance(content, dict) and "logical_count" in content:
        return _loads(file, content["logical_count"])
    records = content.get("records") if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(
        isinstance(one, dict) and hasattr(one.get(_TENSORS), "numpy") for one in records
    ):
        got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{file.name}: expected records with {_TENSORS}, or logical_count, as SGLang's "
            f"recorder saves, got {got}"
        )
    return _RecordRows(file, options, records)


def _loaded(file: File) -> Any:
    try:
        import torch
    except Exception as error:
        raise ValueError(
            f"{file.name}: a file of torch, which is not installed here ({error}): pip install "
            "torch, or save its tensors as .npz"
        ) from None
    with file.open() as stream:
        try:
            return torch.load(seekable(stream), map_location="cpu", weights_only=True)
        except Exception as error:  # of the file's content, which torch does not narrow down
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"{file.name}: expected tensors, lists and numbers alone, which torch loads "
                f"without running code ({lines[0][:200]})"
            ) from None


def _loads(file: File, tensor: Any) -> Loads:
    counts = np.asarray(tensor)
    if counts.ndim == 3 and counts.dtype.kind in "iuf":
        counts = counts.sum(axis=0, dtype=np.float64)
    if counts.ndim != 2 or counts.dtype.kind not in "iuf" or 0 in counts.shape or counts.min() < 0:
        raise ValueError(
            f"{file.name}: logical_count: expected counts [steps, layers, experts], got "
            f"{list(counts.shape)} of {counts.dtype}"
        )
    layers: dict[LayerKey, npt.NDArray[np.int64]] = dict(
        enumerate(np.minimum(counts, MAX_LOAD).astype(np.int64))
    )
    num_steps = len(tensor) if len(tensor.shape) == 3 else 1
    notes = [f"the loads are sums over {num_steps} steps"] if num_steps > 1 else []
    return Loads(file.name, NAME, layers, num_steps, notes)


class _RecordRows(Rows):
    form = NAME

    def __init__(self, file: File, options: Options, records: list[dict[str, Any]]) -> None:
        super().__init__(file, options)
        self._records = records

    def read(self) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
        for number, record in enumerate(self._records):
            ids = np.asarray(record[_TENSORS])
            if ids.ndim != 3 or ids.dtype.kind not in "iu":
                raise ValueError(
                    f"{self.name}: record {number}: {_TENSORS}: expected integers [layers, tokens, "
                    f"top_k], got {list(ids.shape)} of {ids.dtype}"
                )
            self.num_lines += ids.shape[1]
            if ids.shape[1]:
                yield from enumerate(ids)
