"""Reader of ids in NumPy files, slice by slice."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from tessera.routing_log import MAX_EXPERTS, MAX_TOP_K

_PIECE_IDS = 1 << 16


class ArrayReader:
    """Streams `topk_ids` [tokens, top_k] of an .npy, or of an .npz with or without `num_experts`.

    Does not map the file: the part of a mapped file that has been read counts as this process's
    memory, and a member of an .npz cannot be mapped.

    Has the attributes of `RoutingLogReader`; a line is a row, and none is skipped.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.model_id: str | None = None
        self.num_experts: int | None = None
        self.num_lines = 0
        self.num_skipped = 0
        self.skipped: list[str] = []
        self._path = path
        self._file = file

    def pieces(self) -> Iterator[tuple[None, npt.NDArray[np.int64]]]:
        """Parts of the array: no layer, and its next rows. May be called once.

        Raises:
            ValueError: the file is broken, or holds no such array.
        """
        try:
            if self._path.suffix == ".npy":
                yield from self._rows(self._file)
            else:
                yield from self._member_rows()
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            raise ValueError(f"{self._path}: expected NumPy arrays ({error})") from None

    def _member_rows(self) -> Iterator[tuple[None, npt.NDArray[np.int64]]]:
        with zipfile.ZipFile(self._file) as archive:
            members = archive.namelist()
            if "topk_ids.npy" not in members:
                names = sorted(name.removesuffix(".npy") for name in members)
                raise ValueError(f"{self._path}: expected an array topk_ids, got {names}")
            if "num_experts.npy" in members:
                with archive.open("num_experts.npy") as file:
                    self.num_experts = self._one_integer(file)
            with archive.open("topk_ids.npy") as file:
                yield from self._rows(file)

    def _one_integer(self, file: Any) -> int:
        shape, dtype = self._header(file, "num_experts")
        if math.prod(shape) != 1:
            raise ValueError(
                f"{self._path}: num_experts: expected one integer, got {list(shape)} of them"
            )
        value = int(self._elements(file, "num_experts", dtype, 1)[0])
        if not 1 <= value <= MAX_EXPERTS:
            raise ValueError(
                f"{self._path}: num_experts: expected an integer in [1, {MAX_EXPERTS}], got {value}"
            )
        return value

    def _rows(self, file: Any) -> Iterator[tuple[None, npt.NDArray[np.int64]]]:
        shape, dtype = self._header(file, "topk_ids")
        if len(shape) != 2 or shape[0] < 1 or not 1 <= shape[1] <= MAX_TOP_K:
            raise ValueError(
                f"{self._path}: topk_ids: expected [tokens, top_k], at least one token and top_k "
                f"in [1, {MAX_TOP_K}], got {list(shape)}"
            )
        num_tokens, top_k = shape
        step = max(1, _PIECE_IDS // top_k)
        for start in range(0, num_tokens, step):
            count = min(step, num_tokens - start)
            ids = self._elements(file, "topk_ids", dtype, count * top_k).reshape(count, top_k)
            self.num_lines += count
            yield None, ids.astype(np.int64)  # -1 stored as uint64 becomes negative again

    def _header(self, file: BinaryIO, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        try:
            version = npy.read_magic(file)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
            shape, fortran_order, dtype = read(file)
        except OSError:
            raise
        except Exception:  # NumPy's parser of Python literals may raise any exception
            raise ValueError(
                f"{self._path}: {name}: expected a NumPy array, got a header that cannot be read"
            ) from None
        if dtype.kind not in "iu":
            raise ValueError(f"{self._path}: {name}: expected integers, got {dtype}")
        if fortran_order and len(shape) > 1:
            raise ValueError(f"{self._path}: {name}: expected C order, got Fortran order")
        return shape, dtype

    def _elements(self, file: BinaryIO, name: str, dtype: np.dtype[Any], count: int) -> Any:
        content = file.read(count * dtype.itemsize)
        if len(content) != count * dtype.itemsize:
            raise ValueError(f"{self._path}: {name}: expected more elements, got the file's end")
        return np.frombuffer(content, dtype)
