"""The tuning loop: times a log's own tokens at several block sizes, next to the log's advice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey, Progress, widened
from tessera.tools.bench.problem import MAX_WINDOWS
from tessera.tools.bench.shapes import Shape
from tessera.tools.inspection import Document, inspect_logs
from tessera.tools.inspection.document import BATCH_SIZES, BLOCK_SIZES, Advice, Layer
from tessera.tools.inspection.repeated import RepeatedRows
from tessera.tools.routing_files import Options, Rows
from tessera.tools.routing_files.several import layer_names
from tessera.tools.routing_files.whole import rows_of

WINDOW_SIZES = tuple(size for size in BATCH_SIZES if size <= 4096)


@dataclass(frozen=True)
class Tuning:
    """The shapes to measure in logs, with the figures of their inspection.

    shapes: each a layer, the tokens of a window, and a block size.
    figures: for each shape, the figures known without measuring.
    windows: by the shapes' `trace` and `num_tokens`, int32 [windows, tokens, top_k]; -1 for no
        expert.
    left_out: sentences about window sizes longer than a layer.
    layers: by the shapes' `trace`, the numbers of tokens, top k, the least of it, experts, repeated
        rows, and slots without an expert.
    """

    inspection: Document
    shapes: list[Shape]
    figures: list[dict[str, Any]]
    windows: dict[tuple[str, int], npt.NDArray[np.int32]]
    left_out: list[str]
    layers: dict[str, dict[str, int]]

    def join(self, document: dict[str, Any]) -> None:
        """Add the known figures to the results of these shapes."""
        for row, figures in zip(document["rows"], self.figures, strict=True):
            row |= figures
        document["layers"] = self.layers
        document["left_out"] = self.left_out
        document["inspection"] = self.inspection


def tuning(
    paths: Sequence[Path],
    window_sizes: Sequence[int] | None,
    block_sizes: Sequence[int] | None,
    seed: int,
    options: Options,
    together: str | None = None,
    progress: Progress | None = None,
) -> Tuning:
    """Inspect logs, and take a sample of their windows: consecutive tokens without warm-up.

    Reads every log twice, and holds `MAX_WINDOWS` windows of each size and layer.

    Args:
        paths: files of routing with tokens.
        window_sizes: tokens in a window, some of `BATCH_SIZES`; None for `WINDOW_SIZES`.
        block_sizes: some of `BLOCK_SIZES`; None for the one that is recommended for so many tokens,
            and its neighbours.
        seed: of the sample.
        options: how to read the files.
        together: what the files are parts of one model as, as in `inspect_logs`.
        progress: called now and then with the bytes read since its last call.

    Raises:
        ValueError: a log cannot be read, a size is none of those, or no window fits.
    """
    _require_known("--tokens", window_sizes, BATCH_SIZES)
    _require_known("--block-size", block_sizes, BLOCK_SIZES)
    rows_of(paths, options, together)
    inspection = inspect_logs(paths, options, together=together, progress=progress)
    layers = [(model, layer) for model in inspection["models"] for layer in model["layers"]]
    names = layer_names(paths, together, [(layer["log"], layer["layer"]) for _, layer in layers])
    samples = {}
    found = Tuning(inspection, [], [], {}, [], {})
    for name, (model, layer) in zip(names, layers, strict=True):
        file = inspection["logs"][layer["log"]]["file"]
        if layer["num_invalid_ids"]:
            raise ValueError(
                f"{file}: topk_ids: expected ids in [0, {model['num_experts']}), "
                f"got {layer['num_invalid_ids']} others"
            )
        found.layers[name] = {
            "num_tokens": layer["num_tokens"],
            "num_repeated": layer["num_repeated"],
            "num_experts": model["num_experts"],
            "top_k": model["top_k"],
            "least_top_k": model["least_top_k"],
            "num_unused": layer["num_unused"],
        }
        sizes = [size for size in window_sizes or WINDOW_SIZES if size <= layer["num_tokens"]]
        if missing := {*(window_sizes or WINDOW_SIZES)} - {*sizes}:
            found.left_out.append(
                f"{name}: no windows of {min(missing)} tokens or more: it has {layer['num_tokens']}"
            )
        sample = _Sample(layer["num_tokens"], model["top_k"], sizes, seed)
        samples[layer["log"], layer["layer"]] = sample
        for size, ids in sample.windows.items():
            found.windows[name, size] = ids
            advice = next(one for one in model["advice"] if one["batch_size"] == size)
            for block_size in block_sizes or _in_question(advice["block_size"]):
                shape = Shape(size, model["num_experts"], model["top_k"], block_size)
                found.shapes.append(shape.of_log(name))
                found.figures.append(_figures(layer, advice, block_size))
    if not found.shapes:
        raise ValueError(f"--tokens: {found.left_out[0]}")
    for log, rows in enumerate(rows_of(paths, options, together, progress)):
        for number, tokens in _traffic(rows):
            samples[log, number].add(tokens)
    return found


def _require_known(option: str, values: Sequence[int] | None, known: Sequence[int]) -> None:
    for value in values or ():
        if value not in known:
            raise ValueError(
                f"{option}: expected some of {', '.join(map(str, known))} with --log, got {value}"
            )


def _in_question(block_size: int) -> Sequence[int]:
    """The block size and its neighbours."""
    index = BLOCK_SIZES.index(block_size)
    return BLOCK_SIZES[max(0, index - 1) : index + 2]


def _figures(layer: Layer, advice: Advice, block_size: int) -> dict[str, Any]:
    """The figures of an inspection for windows at a block size."""
    batch = next(one for one in layer["batches"] if one["batch_size"] == advice["batch_size"])
    blocks = next(one for one in batch["blocks"] if one["block_size"] == block_size)
    cost = next(one for one in advice["costs"] if one["block_size"] == block_size)
    return {
        "num_windows": batch["num_batches"],
        "num_windows_timed": min(batch["num_batches"], MAX_WINDOWS),
        "num_blocks": blocks["num_blocks"],
        "padding_share": blocks["padding_share"],
        "relative_cost": cost["relative_cost"],
        "is_recommended": block_size == advice["block_size"],
    }


class _Sample:
    """Windows of a layer, chosen at random, and filled while its tokens are streamed.

    windows: by the tokens of a window, int32 [windows, tokens, top_k].
    """

    def __init__(self, num_tokens: int, top_k: int, sizes: Sequence[int], seed: int) -> None:
        self._num_seen = 0
        self._top_k = top_k
        self._starts = {size: _chosen(num_tokens // size, seed) * size for size in sizes}
        self.windows = {
            size: np.zeros((len(starts), size, top_k), np.int32)
            for size, starts in self._starts.items()
        }

    def add(self, tokens: npt.NDArray[Any]) -> None:
        """Take the next tokens, [tokens, top_k], or fewer ids of each."""
        tokens = widened(tokens, self._top_k)
        first, end = self._num_seen, self._num_seen + len(tokens)
        for size, starts in self._starts.items():
            for window, start in zip(self.windows[size], starts.tolist(), strict=True):
                begin, stop = max(first, start), min(end, start + size)
                if begin < stop:
                    window[begin - start : stop - start] = tokens[begin - first : stop - first]
        self._num_seen = end


def _chosen(num_windows: int, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of at most `MAX_WINDOWS` windows, in ascending order."""
    random = np.random.default_rng(seed)
    return np.sort(random.choice(num_windows, min(num_windows, MAX_WINDOWS), replace=False))


def _traffic(rows: Rows) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
    """A layer and its next tokens, without those that an inspection excludes."""
    repeated: dict[LayerKey, RepeatedRows] = {}
    for layer, ids in rows.pieces():
        yield layer, repeated.setdefault(layer, RepeatedRows()).split(ids)[0]
    for layer, rest in repeated.items():
        yield layer, rest.rest()[0]
