"""Shapes of `tessera bench` with the sizes of models, or with the ids of logs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.cli.reading_options import reading_options
from tessera.routing_log import LayerKey
from tessera.tools.bench.op import Op
from tessera.tools.bench.shapes import Shape
from tessera.tools.routing_files import Options, largest_id
from tessera.tools.routing_files.several import layer_names
from tessera.tools.routing_files.whole import Routing, read_experts

_SKEWS = ("uniform", "zipf")
_WHOLE_LAYER_BLOCK_SIZE = 128

Windows = dict[tuple[str, int], npt.NDArray[np.int32]]


def model_shapes(args: argparse.Namespace, op: Op) -> tuple[list[Any], Windows]:
    """The preset's shapes of some models, with these tokens and skews or with the ids of logs.

    A log gives its number of experts and of ids per token, a model the other sizes. The windows are
    by the shapes' `trace` and `num_tokens`, [1, tokens of all sets, ids per token].

    Raises:
        ValueError: an option asks for what there is not.
    """
    preset = op.shapes(args.preset)
    known = list(dict.fromkeys(shape.model for shape in preset))
    named = {name.lower(): name for name in known}
    for name in args.model or ():
        if name.lower() not in named:
            raise ValueError(f"--model: expected some of {', '.join(known)}, got {name}")
    models = [named[name.lower()] for name in args.model or known]
    for skew in args.skew or ():
        if skew not in _SKEWS:
            raise ValueError(
                f"--skew: expected some of {', '.join(_SKEWS)} with --op {op.name}, got {skew}"
            )
    quantization = {"quantization": args.quantization} if args.quantization else {}
    chosen = [shape for shape in preset if shape.model in models]
    varied = [
        replace(shape, num_tokens=num_tokens, skew=skew, **quantization)
        for shape in chosen
        for skew in args.skew or _SKEWS[:1]
        for num_tokens in args.tokens or [shape.num_tokens]
    ]
    shapes = list(dict.fromkeys(varied))
    if not args.log or op.num_sets is None:
        return shapes, {}
    return _with_ids_of_logs(args, shapes, op.num_sets)


def named_layers(
    paths: Sequence[Path], options: Options, together: str | None, *, in_every_slot: bool
) -> list[tuple[str, Routing, LayerKey]]:
    """The layers of files, read as by `read_experts`: a name, the file, and the layer.

    Raises:
        ValueError: a file cannot be read, or an id is not that of an expert.
    """
    files = read_experts(paths, options, together, in_every_slot=in_every_slot)
    layers = [(number, layer) for number, file in enumerate(files) for layer in file.layers]
    names = layer_names(paths, together, layers)
    return [
        (name, files[number], layer) for name, (number, layer) in zip(names, layers, strict=True)
    ]


def _with_ids_of_logs(
    args: argparse.Namespace, shapes: list[Any], num_sets: Callable[[int], int]
) -> tuple[list[Any], Windows]:
    layers = named_layers(args.log, reading_options(args), args.files, in_every_slot=True)
    found, windows = [], {}
    for shape in shapes:
        for name, log, number in layers:
            ids = log.layers[number]
            length = shape.num_tokens * num_sets(shape.num_tokens)
            if length > len(ids):
                continue
            # From the middle on, away from an engine's warm-up, which is at the beginning.
            begin = (len(ids) - length) // 2
            windows[name, shape.num_tokens] = ids[None, begin : begin + length]
            num_experts = log.num_experts or largest_id(ids) + 1
            sizes = {"num_experts": num_experts, "top_k": ids.shape[1]}
            found.append(replace(shape, **sizes, skew="log", trace=name))
    if not found:
        longest = max(len(log.layers[number]) for _, log, number in layers)
        least = min(one.num_tokens * num_sets(one.num_tokens) for one in shapes)
        raise ValueError(f"--log: expected a layer of {least} tokens or more, got {longest}")
    # Shapes with the same weights become neighbours.
    return sorted(found, key=lambda shape: (shape.model, shape.num_experts)), windows


def whole_layers(
    paths: Sequence[Path], options: Options, together: str | None
) -> tuple[list[Shape], dict[tuple[str, int], npt.NDArray[np.int32]]]:
    """Shapes of layers, each after its uniform twin; and one window per layer, with all its ids."""
    shapes, windows = [], {}
    for name, log, number in named_layers(paths, options, together, in_every_slot=False):
        ids = log.layers[number]
        num_experts = log.num_experts or largest_id(ids) + 1
        uniform = Shape(len(ids), num_experts, ids.shape[1], _WHOLE_LAYER_BLOCK_SIZE)
        shapes += [uniform, uniform.of_log(name)]
        windows[name, len(ids)] = ids[None]
    return shapes, windows
