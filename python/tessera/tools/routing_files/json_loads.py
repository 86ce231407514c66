"""Loads without tokens as JSONL: Megatron-LM's tokens per expert, a layer and a step a line."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from tessera._routing_lines import MAX_EXPERTS, MAX_LAYERS, decode, layer_key
from tessera.routing_log import LayerKey, bounded_lines
from tessera.tools.routing_files.kinds import MAX_LOAD
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import Loads
from tessera.tools.routing_files.source import File

NAME = 'loads as JSONL, such as Megatron-LM\'s {"layer": 0, "tokens_per_expert": [47, 16]}'
OPTIONS: tuple[str, ...] = ()
_KEYS = ("tokens_per_expert", "expert_counts", "logical_count")
_IN_TEXT = re.compile(rb'"(tokens_per_expert|expert_counts|logical_count)"\s*:')


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    return 70 if _IN_TEXT.search(file.head) else 0


def read(file: File, options: Options) -> Loads:
    """The loads of a file of this form, summed over its steps.

    Raises:
        ValueError: a line is wrong.
    """
    layers: dict[LayerKey, npt.NDArray[np.int64]] = {}
    number, num_steps = 0, 0
    with file.open() as stream:
        for number, line in enumerate(bounded_lines(stream), start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            try:
                layer, counts = _loads(decode(line))
                if layer in layers and len(layers[layer]) != len(counts):
                    raise ValueError(
                        f"expected {len(layers[layer])} loads in layer {layer}, got {len(counts)}"
                    )
                if layer not in layers and len(layers) == MAX_LAYERS:
                    raise ValueError(f"layer: expected at most {MAX_LAYERS} layers, got more")
            except ValueError as error:
                raise ValueError(f"{file.name}:{number}: {error}") from None
            layers[layer] = np.minimum(layers.get(layer, 0) + counts, MAX_LOAD)
            num_steps += 1
    notes = [f"the loads are sums over {num_steps} lines"] if num_steps > len(layers) else []
    return Loads(file.name, NAME, layers, number, notes)


def _loads(record: dict[str, object]) -> tuple[LayerKey, npt.NDArray[np.int64]]:
    key = next((one for one in _KEYS if one in record), None)
    if key is None:
        raise ValueError(f"{_KEYS[0]}: missing")
    values = record[key]
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_EXPERTS:
        raise ValueError(f"{key}: expected a list of 1 to {MAX_EXPERTS} counts")
    for value in values:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or value != value or not 0 <= value < MAX_LOAD or value != int(value):
            raise ValueError(f"{key}: expected counts in [0, {MAX_LOAD}), got {value}")
    layer = record.get("layer", record.get("layer_id"))
    return None if layer is None else layer_key(layer), np.array(values).astype(np.int64)
