"""Routing logs: a JSON object a line, each a token's routing in a layer, or that of several."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from tessera.routing_log import LayerKey, RoutingLogReader, bounded_lines
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import Rows
from tessera.tools.routing_files.source import File

NAME = (
    "routing logs, an object a line, such as "
    '{"type": "route", "layer": 0, "topk_ids": [3, 1]}, as JSONL'
)
OPTIONS: tuple[str, ...] = ("skip_bad_lines", "zero_experts")
_KEYS = re.compile(rb'"(topk_ids|topk_experts|top_indices)"\s*:|"type"\s*:\s*"(route|meta)"')


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    if _KEYS.search(file.head):
        return 80
    # What a log was meant to be, so that the message has the line.
    return 20 if file.suffix in (".jsonl", ".ndjson") and _is_text(file.head) else 0


def _is_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # which may end within a character
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def read(file: File, options: Options) -> Rows:
    """The rows of a file of this form."""
    return _LogRows(file, options)


class _LogRows(Rows):
    form = NAME
    is_checked = True

    def read(self) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
        options = self.options
        with self.file.open() as stream:
            self._reader = RoutingLogReader(
                bounded_lines(stream),
                self.name,
                num_experts=options.num_experts,
                skip_bad_lines=options.skip_bad_lines,
                zero_experts=options.zero_experts,
            )
            self.skipped = self._reader.skipped
            self.least_top_k = self._reader.least_top_k
            for layer, ids in self._reader.pieces():
                self._take()
                yield layer, ids
        self._take()

    def _take(self) -> None:
        reader = self._reader
        self.model_id, self.num_experts = reader.model_id, reader.num_experts
        self.num_lines, self.num_skipped = reader.num_lines, reader.num_skipped

    def num_padding(self, layer: LayerKey) -> int:
        return self._reader.num_padding.get(layer, 0)
