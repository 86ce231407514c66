"""The options of `tessera bench` that vary the shapes of an op with the sizes of models."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.cli.reading_options import reading_options
from tessera.tools.bench.op import Op
from tessera.tools.bench.tuning import layer_names
from tessera.tools.routing_files import largest_id
from tessera.tools.routing_files.whole import read_filled

_SKEWS = ("uniform", "zipf")

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
    chosen = [shape for shape in preset if shape.model in models]
    varied = [
        replace(shape, num_tokens=num_tokens, skew=skew)
        for shape in chosen
        for skew in args.skew or _SKEWS[:1]
        for num_tokens in args.tokens or [shape.num_tokens]
    ]
    shapes = list(dict.fromkeys(varied))
    if not args.log or op.num_sets is None:
        return shapes, {}
    return _with_ids_of_logs(args, shapes, op.num_sets)


def _with_ids_of_logs(
    args: argparse.Namespace, shapes: list[Any], num_sets: Callable[[int], int]
) -> tuple[list[Any], Windows]:
    options = reading_options(args)
    logs = [(path, read_filled(path, options)) for path in args.log]
    layers = [(path, log, number) for path, log in logs for number in log.layers]
    names = layer_names([(path, number) for path, _, number in layers])
    found, windows = [], {}
    for shape in shapes:
        for name, (_, log, number) in zip(names, layers, strict=True):
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
