"""The lines of routing logs: what one says, or what is wrong with it."""

from __future__ import annotations

import functools
import json
from typing import Annotated, Any, Literal

import msgspec

# Limits of a log, which bound the memory that reading one takes.
MAX_EXPERTS = 65_536
MAX_LAYERS = 1_024
MAX_TOP_K = 1_024
MAX_LINE_BYTES = 1 << 22

_MAX_LAYER = 2**31 - 1
# What Python's `json` refuses as well, with advice for programmers.
LONG_NUMBER = "expected numbers of at most 4,300 digits, got a longer one"
# The last one is that of Megatron-LM's router trace.
_ID_KEYS = ("topk_ids", "topk_experts", "top_indices")

LayerKey = int | str | None
# A layer and its ids, a list for each token.
Route = tuple[LayerKey, list[list[int]]]


@functools.lru_cache(maxsize=16)
def route_decoder(num_experts: int) -> msgspec.json.Decoder[Any]:
    """Reads a good line ten times as fast as `json`, but says too little about a bad one."""
    expert = Annotated[int, msgspec.Meta(ge=-1, lt=num_experts)]
    fields: list[tuple[str, Any]] = [
        ("type", Literal["route"]),
        ("layer", Annotated[int, msgspec.Meta(ge=0, le=_MAX_LAYER)]),
        ("topk_ids", Annotated[list[expert], msgspec.Meta(min_length=1, max_length=MAX_TOP_K)]),
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Route", fields, gc=False))


def decode(line: bytes) -> dict[str, Any]:
    """The object in a line.

    Raises:
        ValueError: there is none.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"expected a line of at most {MAX_LINE_BYTES} bytes, got a longer one")
    cut = "" if line.endswith(b"\n") else "; the file ends in this line: it may have been cut off"
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, got byte {line[error.start]:#04x}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, got {error.msg} at column {error.colno}{cut}") from None
    except ValueError:
        raise ValueError(LONG_NUMBER) from None
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


def _keys(record: dict[str, Any]) -> str:
    return _shown(", ".join(record)) if record else "no keys"


def is_meta(record: dict[str, Any]) -> bool:
    """Whether a log's first line is its head: it may be missing."""
    return record.get("type") == "meta"


def checked_meta(record: dict[str, Any]) -> tuple[str | None, int | None]:
    """The model id and the number of experts.

    Raises:
        ValueError: one of them is wrong.
    """
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


def routes(record: dict[str, Any], num_experts: int, *, zero_experts: bool = False) -> list[Route]:
    """The routing in a line: of one token or several, in one layer or all.

    Args:
        record: the line's object.
        num_experts: ids are in [0, num_experts), or -1 for none.
        zero_experts: ids from `num_experts` on stand for no expert.

    Raises:
        ValueError: there is none, or it is wrong.
    """
    if record.get("type", "route") != "route":
        raise ValueError(f"type: expected 'route', got {_shown(record.get('type'))}")
    layers = record.get("layers")
    if isinstance(layers, list) and not any(key in record for key in _ID_KEYS):
        return [
            (layer, _rows(f"layers[{layer}]", ids, num_experts, zero_experts))
            for layer, ids in enumerate(layers)
        ]
    key = next((one for one in _ID_KEYS if one in record), None)
    if key is None and "type" not in record:
        raise ValueError(f"topk_ids: missing in a line that has {_keys(record)}")
    if "layer" not in record:
        raise ValueError("layer: missing")
    if key is None:
        raise ValueError("topk_ids: missing")
    layer = layer_key(record["layer"])
    # Megatron-LM numbers the layers of its heads for multi-token prediction (MTP) anew.
    if _is_integer(record.get("mtp_idx")):
        layer = f"mtp {record['mtp_idx']} layer {layer}"
    return [(layer, _rows(key, record[key], num_experts, zero_experts))]


def layer_key(layer: Any) -> int | str:
    """A layer's number, also as text, or its name.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(layer, str) and layer:
        if not layer.isdecimal():
            return layer
        if len(layer) <= len(str(_MAX_LAYER)):
            layer = int(layer)
    if not _is_integer(layer) or not 0 <= layer <= _MAX_LAYER:
        raise ValueError(
            f"layer: expected an integer in [0, {_MAX_LAYER}] or a name, got {_shown(layer)}"
        )
    number: int = layer
    return number


def _rows(key: str, ids: Any, num_experts: int, zero_experts: bool) -> list[list[int]]:
    if isinstance(ids, list) and ids and isinstance(ids[0], list):
        return [
            _ids(f"{key}[{row}]", one, num_experts, zero_experts) for row, one in enumerate(ids)
        ]
    return [_ids(key, ids, num_experts, zero_experts)]


def _ids(key: str, ids: Any, num_experts: int, zero_experts: bool) -> list[int]:
    if not isinstance(ids, list) or not ids:
        raise ValueError(f"{key}: expected a list of integers, got {_shown(ids)}")
    if len(ids) > MAX_TOP_K:
        raise ValueError(f"{key}: expected at most {MAX_TOP_K} integers, got {len(ids)}")
    found = []
    for value in ids:
        number = int(value) if isinstance(value, float) and value.is_integer() else value
        if _is_integer(number) and number >= num_experts and zero_experts:
            number = -1
        if not _is_integer(number) or not -1 <= number < num_experts:
            raise ValueError(
                f"{key}: expected integers in [0, {num_experts}), got {_shown(value)}"
                + _meaning(ids, num_experts)
            )
        found.append(number)
    return found


def _meaning(ids: list[Any], num_experts: int) -> str:
    """What ids beyond the experts may mean, with the option that reads them."""
    largest = max((one for one in ids if _is_integer(one)), default=-1)
    if not num_experts <= largest < MAX_EXPERTS:
        return ""
    return (
        f": --experts {largest + 1} if they are experts, --zero-experts if ids from {num_experts} "
        "on stand for no expert"
    )
