"""Reader of recorded routing logs: which experts a model chose for each token.

A log is a text file of one JSON object per line. The first may be `{"type": "meta", ...}`, with
`model_id` and `num_experts` if known. Every other one is a token's routing in a layer,
`{"type": "route", "layer": int, "topk_ids": [int, ...], ...}`, or that of several tokens or layers:
`_routing_lines.routes` has the forms. Further keys and empty lines are ignored.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from tessera._routing_lines import (
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_LINE_BYTES,
    MAX_TOP_K,
    LayerKey,
    Route,
    checked_meta,
    decode,
    is_meta,
    route_decoder,
    routes,
)

__all__ = [
    "MAX_EXPERTS",
    "MAX_LAYERS",
    "MAX_LINE_BYTES",
    "MAX_TOP_K",
    "LayerKey",
    "Progress",
    "RoutingLog",
    "RoutingLogError",
    "RoutingLogReader",
    "bounded_lines",
    "open_log",
    "parse_routing_log",
    "read_routing_log",
    "repeats_an_id",
    "widened",
]

# Number of ids in the lists of a piece.
_PIECE_IDS = 1 << 18
_MAX_SKIPPED_SHOWN = 10
_BUFFER_BYTES = 1 << 20

Progress = Callable[[int], None]


class RoutingLogError(ValueError):
    """A log that cannot be read; the message is "FILE:LINE: what is wrong"."""


class _SecondLogError(ValueError):
    """Another model's log begins in the middle of the file."""


@dataclass(frozen=True)
class RoutingLog:
    """A log's content.

    layers: for each layer, in the order of the file, its ids, int32 [tokens, top_k]; -1 for no
        expert, also where a row has fewer ids than others.
    num_experts: None if the log does not give it.
    """

    model_id: str | None
    num_experts: int | None
    layers: dict[LayerKey, npt.NDArray[np.int32]]


def read_routing_log(path: str | PathLike[str], progress: Progress | None = None) -> RoutingLog:
    """Read a log. Calls `progress` now and then with the number of bytes read since the last call.

    Raises:
        RoutingLogError: there is no such file, it is empty, or a line of it is broken.
    """
    try:
        with open_log(path, progress) as file:
            return parse_routing_log(bounded_lines(file), str(path))
    except OSError as error:
        raise RoutingLogError(f"{path}: {error.strerror or error}") from error


def parse_routing_log(lines: Iterable[bytes], name: str) -> RoutingLog:
    """Read a log from its lines; `name` stands for the file in messages.

    Raises:
        RoutingLogError: the log is empty, or a line of it is broken.
    """
    reader = RoutingLogReader(lines, name)
    layers: dict[LayerKey, list[npt.NDArray[np.int32]]] = {}
    for layer, topk_ids in reader.pieces():
        layers.setdefault(layer, []).append(topk_ids)
    return RoutingLog(
        reader.model_id,
        reader.num_experts,
        {
            layer: np.concatenate([widened(one, pieces[-1].shape[1]) for one in pieces])
            for layer, pieces in layers.items()
        },
    )


def widened(ids: npt.NDArray[Any], top_k: int) -> npt.NDArray[Any]:
    """The same rows [n, k] with at least `top_k` slots, the new ones without an expert."""
    more = top_k - ids.shape[1]
    return np.pad(ids, ((0, 0), (0, more)), constant_values=-1) if more > 0 else ids


def repeats_an_id(ids: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which of the rows [n, top_k] name an expert twice."""
    ordered = np.sort(ids, axis=1)
    same = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    # 2**31 - 1 stands for all ids outside the experts.
    repeated: npt.NDArray[np.bool_] = (same & (ordered[:, 1:] < 2**31 - 1)).any(axis=1)
    return repeated


class _CountedFile(io.FileIO):
    def __init__(self, path: str | PathLike[str], progress: Progress) -> None:
        super().__init__(path, "rb")
        self._progress = progress

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        self._progress(count or 0)
        return count


def open_log(path: str | PathLike[str], progress: Progress | None) -> BinaryIO:
    """Open a file for reading that calls `progress` for every megabyte."""
    if progress is None:
        return Path(path).open("rb")
    return io.BufferedReader(_CountedFile(path, progress), _BUFFER_BYTES)


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """The file's lines, each cut off after `MAX_LINE_BYTES` + 1 bytes."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)


class RoutingLogReader:
    """Streams a log: its memory use does not depend on the log's length.

    The attributes are complete when `pieces` has ended, `model_id` and `num_experts` when it has
    yielded its first piece.

    model_id, num_experts: None if the log does not give it.
    num_lines: lines read.
    num_skipped, skipped: lines skipped, and the messages of the first of them.
    least_top_k: by layer, the ids of the row with the fewest.
    num_padding: by layer, the slots that were added to rows that are shorter than others.
    """

    def __init__(
        self,
        lines: Iterable[bytes],
        name: str,
        *,
        num_experts: int | None = None,
        skip_bad_lines: bool = False,
        zero_experts: bool = False,
    ) -> None:
        """`name` stands for the file in messages; `num_experts` overrides the log's number.

        With `zero_experts`, ids from the number of experts on stand for no expert.
        """
        self.model_id: str | None = None
        self.num_experts: int | None = None
        self.num_lines = 0
        self.num_skipped = 0
        self.skipped: list[str] = []
        self.least_top_k: dict[LayerKey, int] = {}
        self.num_padding: dict[LayerKey, int] = {}
        self._lines = lines
        self._name = name
        self._known_experts = num_experts
        self._skip_bad_lines = skip_bad_lines
        self._zero_experts = zero_experts
        self._has_meta = False
        self._limit = MAX_EXPERTS if num_experts is None else num_experts
        self._decoder = route_decoder(self._limit)
        self._top_k: dict[LayerKey, int] = {}
        self._held: dict[LayerKey, _Held] = {}

    def pieces(self) -> Iterator[tuple[LayerKey, npt.NDArray[np.int32]]]:
        """Parts of the log: a layer and its next ids, [tokens, top_k]. May be called once.

        -1 stands for no expert. No part of a layer is narrower than the one before.

        Raises:
            RoutingLogError: the log holds no routing, or has a bad line that must not be skipped.
        """
        num_ids = 0
        for number, line in enumerate(self._lines, start=1):
            self.num_lines = number
            try:
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                route = self._quick_route(line)
                held = None if route is None else self._held.get(route.layer)
                # As nearly all lines of a long log.
                if held is not None and len(route.topk_ids) == self._top_k[route.layer]:
                    held.ids.extend(route.topk_ids)
                    held.lines.append(number)
                    num_ids += len(route.topk_ids)
                    if num_ids >= _PIECE_IDS:
                        yield from self._arrays()
                        num_ids = 0
                    continue
                if route is None:
                    found = self._routes(line, number)
                else:
                    found = [(route.layer, [route.topk_ids])]
                for layer, rows in found:
                    if layer not in self._top_k and len(self._top_k) == MAX_LAYERS:
                        raise ValueError(f"layer: expected at most {MAX_LAYERS} layers, got more")
                    for ids in rows:
                        yield from self._add(layer, ids, number)
                        num_ids += len(ids)
            except ValueError as error:
                if isinstance(error, RoutingLogError):
                    raise
                self._skip(number, error)
                continue
            if num_ids >= _PIECE_IDS:
                yield from self._arrays()
                num_ids = 0
        if self.num_lines == 0:
            raise RoutingLogError(f"{self._name}: expected a routing log, got an empty file")
        yield from self._arrays()
        if not self._top_k:
            raise RoutingLogError(
                f"{self._name}:{self.num_lines}: expected a line of type 'route', got the file's "
                "end" + (f"; skipped {self.skipped[0]}" if self.skipped else "")
            )

    def _quick_route(self, line: bytes) -> Any:
        """A line's `layer` and `topk_ids`, or None if the line needs a closer look."""
        if len(line) > MAX_LINE_BYTES:
            return None
        try:
            return self._decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _routes(self, line: bytes, number: int) -> list[Route]:
        if not line.strip():
            return []
        record = decode(line)
        if is_meta(record):
            # With skip_bad_lines, the first line may have been a bad one.
            if number == 1 or not (self._has_meta or self._top_k):
                self._take_meta(record)
                return []
            message = "type: expected 'route', got \"meta\": a second log begins here"
            if checked_meta(record) != (self.model_id, self.num_experts):
                raise _SecondLogError(f"{message}, of another model")
            raise ValueError(message)
        return routes(record, self._limit, zero_experts=self._zero_experts)

    def _take_meta(self, record: dict[str, Any]) -> None:
        self.model_id, self.num_experts = checked_meta(record)
        self._has_meta = True
        if self._known_experts is None and self.num_experts is not None:
            self._limit = self.num_experts
            self._decoder = route_decoder(self._limit)

    def _add(
        self, layer: LayerKey, ids: list[int], number: int
    ) -> Iterator[tuple[LayerKey, npt.NDArray[np.int32]]]:
        """Hold a row. Yields what its layer holds if the row is longer."""
        count, top_k = len(ids), self._top_k.get(layer, 0)
        if count != top_k:
            if count > top_k:
                if layer in self._held:
                    yield from self._of_layer(layer)
                self._top_k[layer] = count
            else:
                ids = ids + [-1] * (top_k - count)
                self.num_padding[layer] = self.num_padding.get(layer, 0) + top_k - count
            self.least_top_k[layer] = min(count, self.least_top_k.get(layer, count))
        held = self._held.get(layer)
        if held is None:
            held = self._held[layer] = _Held([], [])
        held.ids.extend(ids)
        held.lines.append(number)

    def _arrays(self) -> Iterator[tuple[LayerKey, npt.NDArray[np.int32]]]:
        for layer in list(self._held):
            yield from self._of_layer(layer)

    def _of_layer(self, layer: LayerKey) -> Iterator[tuple[LayerKey, npt.NDArray[np.int32]]]:
        held, top_k = self._held.pop(layer), self._top_k[layer]
        ids = np.array(held.ids, np.int32).reshape(-1, top_k)
        repeated = repeats_an_id(ids)
        # A row of zeros is one that was not recorded, and no line that is wrong.
        repeated &= ids.any(axis=1)
        if repeated.any():
            for row in np.flatnonzero(repeated).tolist():
                got = ids[row][ids[row] >= 0].tolist()
                message = f"topk_ids: expected different experts, got {got[:12]}"
                self._skip(held.lines[row], ValueError(message))
            ids = ids[~repeated]
        if len(ids):
            yield layer, ids

    def _skip(self, number: int, error: ValueError) -> None:
        message = f"{self._name}:{number}: {error}"
        # Lines after another model's head would be counted as this model's.
        if not self._skip_bad_lines or isinstance(error, _SecondLogError):
            for _ in self._arrays():  # an earlier line may be the first bad one
                pass
            raise RoutingLogError(message) from None
        self.num_skipped += 1
        if len(self.skipped) < _MAX_SKIPPED_SHOWN:
            self.skipped.append(message)


class _Held(NamedTuple):
    """Rows of a layer that are not yet yielded, one after the other, and their lines."""

    ids: list[int]
    lines: list[int]
