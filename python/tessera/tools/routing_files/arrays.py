"""Arrays in NumPy files: their shapes, their kinds, and their content slice by slice."""

from __future__ import annotations

import functools
import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from tessera.routing_log import MAX_EXPERTS, LayerKey
from tessera.tools.routing_files.kinds import kind_of
from tessera.tools.routing_files.source import File, seekable

_PIECE_IDS = 1 << 16
_MAX_PIECE_BYTES = 1 << 28
# An array in Fortran order is read as a whole.
_MAX_FORTRAN_BYTES = _MAX_PIECE_BYTES
NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
# Arrays that describe the others.
_BESIDE = ("num_experts", "expert_map", "block_size")
# What tessera align saves beside the ids.
_RESULTS = ("sorted_token_ids", "expert_ids", "num_tokens_post_pad")
_BY_NAME = {
    "topk_ids": "ids",
    "routed_experts": "ids",
    "prompt_routed_experts": "ids",
    "logical_count": "loads",
    "router_logits": "logits",
}


@dataclass(frozen=True)
class Array:
    """An array of a file, of the shape and data type in its header; `member` of an .npz."""

    file: File
    name: str
    member: str | None

    @cached_property
    def _header(self) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        with self._opened(counted=False) as stream:
            return self._read_header(stream)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self._header[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements."""
        return self._header[2]

    @cached_property
    def kind(self) -> str:
        """What the elements are: see `kind_of`."""
        return _BY_NAME[self.name] if self.tells_kind else self._kind_by_content()

    @property
    def tells_kind(self) -> bool:
        """Whether the name says what the elements are."""
        return self.name in _BY_NAME

    def _kind_by_content(self) -> str:
        if self.dtype.kind not in "biuf" or len(self.shape) not in (1, 2, 3):
            return ""
        if 0 in self.shape:
            return "ids"
        found = ""
        for number, piece in enumerate(self.slices(counted=False)):
            found = kind_of(piece.reshape(-1, self.width), self.shape)
            # Rows that were not recorded may come first, and say nothing.
            if found != "zeros" or number == 15:
                break
        return found

    @property
    def width(self) -> int:
        """The length of a row: that of the last axis, or 1."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    def refuse(self, expected: str, got: object) -> ValueError:
        """The error for an array that is not what it should be."""
        return ValueError(f"{self.file.name}: {self.name}: expected {expected}, got {got}")

    def whole(self) -> npt.NDArray[Any]:
        """All elements, of a small array."""
        return np.concatenate([*self.slices(counted=False)]).reshape(self.shape)

    def slices(self, *, counted: bool = True) -> Iterator[npt.NDArray[Any]]:
        """Slices along the first axis, in the machine's byte order.

        Not mapped: the part of a mapped file that has been read counts as this process's memory,
        and a member of an .npz cannot be mapped.
        """
        with self._opened(counted=counted) as stream:
            shape, fortran_order, dtype = self._read_header(stream)
            if dtype.kind == "O":
                raise self.refuse("integers", "Python objects, which only unpickling would read")
            length, rest = (shape or (1,))[0], shape[1:]
            row = math.prod(rest)
            if fortran_order and len(shape) > 1:
                yield from self._fortran(stream, shape, dtype)
                return
            step = max(1, _PIECE_IDS // max(1, row))
            for start in range(0, length, step):
                count = min(step, length - start)
                elements = self._elements(stream, dtype, count * row)
                yield elements.reshape(count, *rest)

    def _fortran(
        self, stream: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Iterator[npt.NDArray[Any]]:
        count = math.prod(shape)
        if count * dtype.itemsize > _MAX_FORTRAN_BYTES:
            raise self.refuse(
                f"C order, or at most {_MAX_FORTRAN_BYTES >> 20} MiB", f"Fortran order, {shape}"
            )
        whole = self._elements(stream, dtype, count).reshape(shape, order="F")
        step = max(1, _PIECE_IDS // max(1, math.prod(shape[1:])))
        for start in range(0, shape[0], step):
            yield np.ascontiguousarray(whole[start : start + step])

    @contextmanager
    def _opened(self, *, counted: bool) -> Iterator[BinaryIO]:
        with self.file.open(counted=counted) as stream:
            if self.member is None:
                yield stream
                return
            with (
                seekable(stream) as stored,
                zipfile.ZipFile(stored) as archive,
                archive.open(self.member) as member,
            ):
                yield cast(BinaryIO, member)

    def _read_header(self, stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        try:
            version = npy.read_magic(stream)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
            found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(stream)
        except (OSError, EOFError, zipfile.BadZipFile):
            raise
        except Exception:  # NumPy's parser of Python literals may raise any exception
            raise self.refuse("a NumPy array", "a header that cannot be read") from None
        return found

    def _elements(self, stream: BinaryIO, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        if count * dtype.itemsize > _MAX_PIECE_BYTES:
            raise self.refuse(f"rows of at most {_MAX_PIECE_BYTES >> 20} MiB", list(self.shape))
        content = stream.read(count * dtype.itemsize)
        if len(content) != count * dtype.itemsize:
            raise self.refuse("more elements", "the file's end")
        elements: npt.NDArray[Any] = np.frombuffer(content, dtype)
        return elements.astype(dtype.newbyteorder("="), copy=False)


@functools.lru_cache(maxsize=16)
def arrays_of(file: File) -> dict[str, Array]:
    """The arrays of an .npy, which is named topk_ids, or of an .npz; none of another file."""
    if file.head.startswith(NPY):
        return {"topk_ids": _Unnamed(file, "topk_ids", None)}
    if not file.head.startswith(ZIP):
        return {}
    with file.open(counted=False) as stream, zipfile.ZipFile(seekable(stream)) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
    names = {member.removesuffix(".npy"): member for member in members}
    return {name: Array(file, name, member) for name, member in names.items()}


class _Unnamed(Array):
    """The array of an .npy: its name says nothing about its kind."""

    @property
    def tells_kind(self) -> bool:
        """Whether the name says what the elements are."""
        return False


@functools.lru_cache(maxsize=16)
def tables_of(file: File) -> dict[LayerKey, Array]:
    """The arrays that hold routing, by layer: None for the only one of a file."""
    arrays = arrays_of(file)
    for name in ("topk_ids", "routed_experts"):
        if name in arrays:
            return {None: arrays[name]}
    found = {name: one for name, one in arrays.items() if name not in (*_BESIDE, *_RESULTS)}
    found = {name: one for name, one in found.items() if one.kind}
    if len(found) == 1:
        return {None: next(iter(found.values()))}
    return {_layer_of(name): one for name, one in found.items()}


def _layer_of(name: str) -> LayerKey:
    number = re.fullmatch(r"(?:model\.)?(?:layers?|l)?[._-]?(\d{1,9})(?:\.topk_ids)?", name.lower())
    return name if number is None else int(number[1])


def declared_experts(file: File) -> int | None:
    """The number of experts in an .npz, if it has one.

    Raises:
        ValueError: it is no number of experts.
    """
    array = arrays_of(file).get("num_experts")
    if array is None:
        return None
    if math.prod(array.shape) != 1 or array.dtype.kind not in "iu":
        raise array.refuse("one integer", f"{list(array.shape)} of {array.dtype}")
    value = int(array.whole().reshape(-1)[0])
    if not 1 <= value <= MAX_EXPERTS:
        raise array.refuse(f"an integer in [1, {MAX_EXPERTS}]", value)
    return value


def expert_map_of(file: File) -> npt.NDArray[Any] | None:
    """The expert map in an .npz, int32 [experts] if its values fit.

    Raises:
        ValueError: it is no list of integers.
    """
    array = arrays_of(file).get("expert_map")
    if array is None:
        return None
    if len(array.shape) != 1 or array.dtype.kind not in "iu" or array.shape[0] > MAX_EXPERTS:
        raise array.refuse("integers [experts]", f"{list(array.shape)} of {array.dtype}")
    found = array.whole().astype(np.int64)
    if found.size and not -(2**31) <= found.min() <= found.max() < 2**31:
        raise array.refuse("32-bit integers", int(found[np.abs(found).argmax()]))
    return found.astype(np.int32)
