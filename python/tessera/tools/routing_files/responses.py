"""Responses of engines that return the experts of their tokens, as JSON or JSONL.

vLLM gives `routed_experts` and `prompt_routed_experts`, [tokens, layers, top_k], as nested lists or
as base64 of an .npy; SGLang gives base64 of int32 without a shape.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tessera._routing_lines import LONG_NUMBER
from tessera.routing_log import LayerKey
from tessera.tools.routing_files.kinds import are_whole
from tessera.tools.routing_files.options import PHASES, Options
from tessera.tools.routing_files.reading import Rows
from tessera.tools.routing_files.source import File

NAME = (
    "responses with routed_experts [tokens, layers, top_k], as lists or base64, as JSON or JSONL "
    "(base64 of int32 with --num-layers and --top-k)"
)
OPTIONS: tuple[str, ...] = ("skip_bad_lines", "zero_experts", "phase", "num_layers", "top_k")
# Of a document or a line, which is held as a whole: as objects of Python up to 36 times as large.
MAX_RESPONSE_BYTES = 1 << 24
_PART_TOKENS = 1 << 12
_KEYS = dict(zip(PHASES, ("prompt_routed_experts", "routed_experts"), strict=True))
_IN_TEXT = re.compile(rb'"(prompt_)?routed_experts"\s*:')


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    return 90 if _IN_TEXT.search(file.head) else 0


def read(file: File, options: Options) -> Rows:
    """The rows of a file of this form."""
    return _ResponseRows(file, options)


class _ResponseRows(Rows):
    form = NAME

    def read(self) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
        found: set[str] = set()
        for place, document in self._documents():
            # Only arrays outlive a document: as objects of Python, two of them would be too large.
            for phase, ids in self._arrays(place, document):
                found.add(phase)
                if ids is None:  # of the other phase
                    continue
                self.num_lines += len(ids)
                for layer in range(ids.shape[1]):
                    yield layer, ids[:, layer]
        if not found:
            raise ValueError(f"{self.name}: expected routed_experts, got none but null")
        if self.options.phase is not None and self.options.phase not in found:
            raise ValueError(
                f"{self.name}: --phase: expected {found.pop()}, since there is no other, got "
                f"{self.options.phase}"
            )

    def _documents(self) -> Iterator[tuple[str, bytes]]:
        """The documents, each with its place: one a line, or one that is the whole file."""
        with self.file.open() as stream:
            number = 0
            while line := stream.readline(MAX_RESPONSE_BYTES + 1):
                number += 1
                # Before it is parsed, which takes longer than to read it.
                self._require_short(number, line)
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                    if not _is_document(line):
                        line += stream.read(MAX_RESPONSE_BYTES + 1 - len(line))
                        self._require_short(number, line)
                if line.strip():
                    yield f"{self.name}:{number}", line

    def _require_short(self, number: int, document: bytes) -> None:
        if len(document) > MAX_RESPONSE_BYTES:
            raise ValueError(
                f"{self.name}:{number}: expected a document of at most {MAX_RESPONSE_BYTES} bytes, "
                "got a longer one"
            )

    def _arrays(self, place: str, document: bytes) -> list[tuple[str, npt.NDArray[Any] | None]]:
        """The arrays of a document with their phases; None for one that is not read."""
        try:
            record = _decoded(document)
        except (ValueError, RecursionError) as error:
            message = f"{place}: expected JSON ({error})"
            if not self.options.skip_bad_lines:
                raise ValueError(message) from None
            self.num_skipped += 1
            self.skipped.append(message)
            return []
        return [
            (phase, self._array(f"{place}: {key}", value) if self._reads(phase) else None)
            for phase, key, value in _values(record)
        ]

    def _reads(self, phase: str) -> bool:
        return self.options.phase in (None, phase)

    def _array(self, place: str, value: Any) -> npt.NDArray[Any]:
        ids = self._decoded(place, value) if isinstance(value, str) else _nested(place, value)
        if ids.ndim != 3 or 0 in ids.shape or ids.dtype.kind not in "iuf":
            raise ValueError(
                f"{place}: expected integers [tokens, layers, top_k], at least one of each, got "
                f"{list(ids.shape)} of {ids.dtype}"
            )
        if ids.dtype.kind == "f":
            if not are_whole(ids):
                raise ValueError(f"{place}: expected integers, got {ids.dtype}")
            ids = ids.astype(np.int64)
        return ids

    def _decoded(self, place: str, text: str) -> npt.NDArray[Any]:
        try:
            content = base64.b64decode(text, validate=True)
            if content.startswith(b"\x93NUMPY"):
                ids: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
                return ids
        except Exception as error:  # NumPy's parser of headers may raise any exception
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{place}: expected base64 of an array ({reason})") from None
        layers, top_k = self.options.num_layers, self.options.top_k
        if layers is None or top_k is None:
            raise ValueError(
                f"{place}: {len(content)} bytes without a shape: expected --num-layers and --top-k"
            )
        if len(content) % (4 * layers * top_k):
            raise ValueError(
                f"{place}: expected int32 [tokens, {layers}, {top_k}], got {len(content)} bytes, "
                f"no multiple of {4 * layers * top_k}"
            )
        return np.frombuffer(content, "<i4").reshape(-1, layers, top_k).astype(np.int32)


def _nested(place: str, value: Any) -> npt.NDArray[Any]:
    if not isinstance(value, list):
        return np.array(value)
    # In parts, since NumPy holds something for each of the lists while it converts them.
    parts = (value[first : first + _PART_TOKENS] for first in range(0, len(value), _PART_TOKENS))
    try:
        return np.concatenate([np.array(part) for part in parts] or [np.array(value)])
    except (ValueError, OverflowError):
        raise ValueError(
            f"{place}: expected [tokens, layers, top_k], got lists of different lengths"
        ) from None


def _values(record: Any) -> Iterator[tuple[str, str, Any]]:
    """The phase, key and value of every array, wherever it is in a response."""
    if isinstance(record, list):
        for one in record:
            if isinstance(one, dict):
                yield from _values(one)
        return
    if not isinstance(record, dict):
        return
    for phase, key in _KEYS.items():
        if record.get(key) is not None:
            yield phase, key, record[key]
    for key, value in record.items():
        if key not in _KEYS.values() and isinstance(value, (dict, list)):
            yield from _values(value)


def _is_document(line: bytes) -> bool:
    try:
        _decoded(line)
    except (ValueError, RecursionError):
        return False
    return True


def _decoded(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError:
        pass
    try:
        return json.loads(line)  # which takes NaN
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        raise ValueError(LONG_NUMBER) from None
