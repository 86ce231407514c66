"""Reader of recorded routing logs: which experts a model chose for each token.

A log is a text file of one JSON object per line. The first is `{"type": "meta", ...}`, with
`model_id` and `num_experts` if known. Every other one is a token's routing in a layer,
`{"type": "route", "layer": int, "topk_ids": [int, ...], ...}`. Further keys are ignored.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
import numpy as np
import numpy.typing as npt

# Limits of a log, which bound the memory that reading one takes.
MAX_EXPERTS = 65_536
MAX_LAYERS = 1_024
MAX_TOP_K = 1_024
MAX_LINE_BYTES = 1 << 20

_MAX_LAYER = 2**31 - 1
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

    layers: for each layer, in the order of the file, its ids, int32 [tokens, top_k].
    num_experts: None if the log does not give it.
    """

    model_id: str | None
    num_experts: int | None
    layers: dict[int, npt.NDArray[np.int32]]


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
    layers: dict[int, list[npt.NDArray[np.int32]]] = {}
    for layer, topk_ids in reader.pieces():
        layers.setdefault(layer, []).append(topk_ids)
    return RoutingLog(
        reader.model_id,
        reader.num_experts,
        {layer: np.concatenate(pieces) for layer, pieces in layers.items()},
    )


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
    """

    def __init__(
        self,
        lines: Iterable[bytes],
        name: str,
        *,
        num_experts: int | None = None,
        skip_bad_lines: bool = False,
    ) -> None:
        """`name` stands for the file in messages; `num_experts` overrides the log's number."""
        self.model_id: str | None = None
        self.num_experts: int | None = None
        self.num_lines = 0
        self.num_skipped = 0
        self.skipped: list[str] = []
        self._lines = lines
        self._name = name
        self._known_experts = num_experts
        self._skip_bad_lines = skip_bad_lines
        self._has_meta = False
        self._limit = MAX_EXPERTS if num_experts is None else num_experts
        self._decoder = _route_decoder(self._limit)

    def pieces(self) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
        """Parts of the log: a layer and its next ids, [tokens, top_k]. May be called once.

        Raises:
            RoutingLogError: the log holds no routing, or has a bad line that must not be skipped.
        """
        top_k: dict[int, int] = {}
        flat_ids: dict[int, list[int]] = {}
        num_ids = 0
        for number, line in enumerate(self._lines, start=1):
            self.num_lines = number
            try:
                route = self._quick_route(line) if number > 1 else None
                if route is None:
                    record = _decode(line)
                    # With skip_bad_lines, the first line may have been a bad one.
                    if number == 1 or not (self._has_meta or top_k or record.get("type") != "meta"):
                        self._take_meta(record)
                        continue
                    route = self._checked_route(record)
                layer, ids = route
                if layer not in top_k:
                    if len(top_k) == MAX_LAYERS:
                        raise ValueError(f"layer: expected at most {MAX_LAYERS} layers, got more")
                    top_k[layer] = len(ids)
                elif top_k[layer] != len(ids):
                    raise ValueError(
                        f"topk_ids: expected {top_k[layer]} in layer {layer}, got {len(ids)}"
                    )
            except ValueError as error:
                self._skip(number, error)
                continue
            flat_ids.setdefault(layer, []).extend(ids)
            num_ids += len(ids)
            if num_ids >= _PIECE_IDS:
                yield from _arrays(flat_ids, top_k)
                flat_ids, num_ids = {}, 0
        if self.num_lines == 0:
            raise RoutingLogError(f"{self._name}: expected a routing log, got an empty file")
        if not top_k:
            raise RoutingLogError(
                f"{self._name}:{self.num_lines}: expected a line of type 'route', got the file's "
                "end" + (f"; skipped {self.skipped[0]}" if self.skipped else "")
            )
        yield from _arrays(flat_ids, top_k)

    def _quick_route(self, line: bytes) -> tuple[int, list[int]] | None:
        """A line's layer and ids, or None if the line needs a closer look."""
        if len(line) > MAX_LINE_BYTES:
            return None
        try:
            route = self._decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return route.layer, route.topk_ids

    def _take_meta(self, record: dict[str, Any]) -> None:
        self.model_id, self.num_experts = _checked_meta(record)
        self._has_meta = True
        if self._known_experts is None and self.num_experts is not None:
            self._limit = self.num_experts
            self._decoder = _route_decoder(self._limit)

    def _checked_route(self, record: dict[str, Any]) -> tuple[int, list[int]]:
        if record.get("type") == "meta":
            message = "type: expected 'route', got \"meta\": a second log begins here"
            if _checked_meta(record) != (self.model_id, self.num_experts):
                raise _SecondLogError(f"{message}, of another model")
            raise ValueError(message)
        return _checked_route(record, self._limit)

    def _skip(self, number: int, error: ValueError) -> None:
        message = f"{self._name}:{number}: {error}"
        # Lines after another model's head would be counted as this model's.
        if not self._skip_bad_lines or isinstance(error, _SecondLogError):
            raise RoutingLogError(message) from None
        self.num_skipped += 1
        if len(self.skipped) < _MAX_SKIPPED_SHOWN:
            self.skipped.append(message)


def _arrays(
    flat_ids: dict[int, list[int]], top_k: dict[int, int]
) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
    for layer, ids in flat_ids.items():
        yield layer, np.array(ids, np.int32).reshape(-1, top_k[layer])


@functools.lru_cache(maxsize=16)
def _route_decoder(num_experts: int) -> msgspec.json.Decoder[Any]:
    """Reads a good line ten times as fast as `json`, but says too little about a bad one."""
    expert = Annotated[int, msgspec.Meta(ge=0, lt=num_experts)]
    fields: list[tuple[str, Any]] = [
        ("type", Literal["route"]),
        ("layer", Annotated[int, msgspec.Meta(ge=0, le=_MAX_LAYER)]),
        ("topk_ids", Annotated[list[expert], msgspec.Meta(min_length=1, max_length=MAX_TOP_K)]),
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Route", fields, gc=False))


def _decode(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"expected a line of at most {MAX_LINE_BYTES} bytes, got a longer one")
    cut = "" if line.endswith(b"\n") else "; the file ends in this line: it may have been cut off"
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, got byte {line[error.start]:#04x}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, got {error.msg} at column {error.colno}{cut}") from None
    except RecursionError:
        raise ValueError("expected a JSON object, got one nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {_shown(record)}")
    return record


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _checked_meta(record: dict[str, Any]) -> tuple[str | None, int | None]:
    """The model id and the number of experts."""
    if record.get("type") != "meta":
        raise ValueError(
            f"type: expected 'meta' in the first line, got {_shown(record.get('type'))}"
        )
    num_experts = record.get("num_experts")
    if num_experts is not None and not (
        _is_integer(num_experts) and 1 <= num_experts <= MAX_EXPERTS
    ):
        raise ValueError(
            f"num_experts: expected an integer in [1, {MAX_EXPERTS}], got {_shown(num_experts)}"
        )
    model_id = record.get("model_id")
    if model_id is not None and not isinstance(model_id, str):
        raise ValueError(f"model_id: expected text, got {_shown(model_id)}")
    return model_id, num_experts


def _checked_route(record: dict[str, Any], num_experts: int) -> tuple[int, list[int]]:
    if record.get("type") != "route":
        raise ValueError(f"type: expected 'route', got {_shown(record.get('type'))}")
    for key in ("layer", "topk_ids"):
        if key not in record:
            raise ValueError(f"{key}: missing")
    layer, ids = record["layer"], record["topk_ids"]
    if not _is_integer(layer) or not 0 <= layer <= _MAX_LAYER:
        raise ValueError(f"layer: expected an integer in [0, {_MAX_LAYER}], got {_shown(layer)}")
    if not isinstance(ids, list) or not ids:
        raise ValueError(f"topk_ids: expected a list of integers, got {_shown(ids)}")
    if len(ids) > MAX_TOP_K:
        raise ValueError(f"topk_ids: expected at most {MAX_TOP_K} integers, got {len(ids)}")
    for value in ids:
        if not _is_integer(value) or not 0 <= value < num_experts:
            raise ValueError(
                f"topk_ids: expected integers in [0, {num_experts}), got {_shown(value)}"
            )
    return layer, ids
