"""Reader of recorded routing logs: which experts a model chose for each token.

A log is a text file of one JSON object a line. The first is `{"type": "meta", ...}`, with
`model_id` and `num_experts` where they are known. Every other one is a token's routing in a layer,
`{"type": "route", "layer": int, "topk_ids": [int, ...], ...}`. Further keys are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_MAX_ID = 2**31 - 1


class RoutingLogError(ValueError):
    """A log that cannot be read; the message is "FILE:LINE: what is wrong"."""


@dataclass(frozen=True)
class RoutingLog:
    """A log's content.

    layers: for each layer, in the order of the file, its ids, int32 [tokens, top_k].
    num_experts: None where the log does not tell.
    """

    model_id: str | None
    num_experts: int | None
    layers: dict[int, npt.NDArray[np.int32]]


def read_routing_log(path: str | PathLike[str]) -> RoutingLog:
    """Read a log.

    Raises:
        RoutingLogError: there is no such file, it is empty, or a line of it is broken.
    """
    try:
        with Path(path).open("rb") as file:
            return parse_routing_log(file, str(path))
    except OSError as error:
        raise RoutingLogError(f"{path}: {error.strerror or error}") from error


def parse_routing_log(lines: Iterable[bytes], name: str) -> RoutingLog:
    """Read a log from its lines; `name` stands for the file in messages.

    Raises:
        RoutingLogError: the log is empty, or a line of it is broken.
    """
    meta: dict[str, Any] | None = None
    layers: dict[int, list[list[int]]] = {}
    number = 0
    for number, line in enumerate(lines, start=1):
        try:
            record = _decode(line)
            if meta is None:
                meta = _checked_meta(record)
            else:
                layer, ids = _checked_route(record, meta["num_experts"])
                rows = layers.setdefault(layer, [])
                if rows and len(rows[0]) != len(ids):
                    raise ValueError(
                        f"topk_ids: expected {len(rows[0])} in layer {layer}, got {len(ids)}"
                    )
                rows.append(ids)
        except ValueError as error:
            raise RoutingLogError(f"{name}:{number}: {error}") from None
    if meta is None:
        raise RoutingLogError(f"{name}: expected a routing log, got an empty file")
    if not layers:
        raise RoutingLogError(
            f"{name}:{number}: expected a line of type 'route', got the file's end"
        )
    return RoutingLog(
        meta["model_id"],
        meta["num_experts"],
        {layer: np.array(rows, np.int32) for layer, rows in layers.items()},
    )


def _decode(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, got byte {line[error.start]:#04x}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, got {error.msg} at column {error.colno}") from None
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


def _checked_meta(record: dict[str, Any]) -> dict[str, Any]:
    if record.get("type") != "meta":
        raise ValueError(
            f"type: expected 'meta' in the first line, got {_shown(record.get('type'))}"
        )
    num_experts = record.get("num_experts")
    if num_experts is not None and not (_is_integer(num_experts) and 1 <= num_experts <= _MAX_ID):
        raise ValueError(
            f"num_experts: expected an integer of at least 1, got {_shown(num_experts)}"
        )
    model_id = record.get("model_id")
    if model_id is not None and not isinstance(model_id, str):
        raise ValueError(f"model_id: expected text, got {_shown(model_id)}")
    return {"model_id": model_id, "num_experts": num_experts}


def _checked_route(record: dict[str, Any], num_experts: int | None) -> tuple[int, list[int]]:
    if record.get("type") != "route":
        raise ValueError(f"type: expected 'route', got {_shown(record.get('type'))}")
    for key in ("layer", "topk_ids"):
        if key not in record:
            raise ValueError(f"{key}: missing")
    layer, ids = record["layer"], record["topk_ids"]
    if not _is_integer(layer) or layer < 0:
        raise ValueError(f"layer: expected an integer of at least 0, got {_shown(layer)}")
    if not isinstance(ids, list) or not ids:
        raise ValueError(f"topk_ids: expected a list of integers, got {_shown(ids)}")
    limit = _MAX_ID + 1 if num_experts is None else num_experts
    for value in ids:
        if not _is_integer(value) or not 0 <= value < limit:
            raise ValueError(f"topk_ids: expected integers in [0, {limit}), got {_shown(value)}")
    return layer, ids
