"""Reads logs into the document of an inspection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from tessera.info import version
from tessera.routing_log import MAX_EXPERTS, Progress, open_log
from tessera.tools.inspection.advice import COST_MODEL, advice
from tessera.tools.inspection.document import Document, Layer, Log, Model
from tessera.tools.inspection.layer import LayerSums
from tessera.tools.inspection.limits import limits
from tessera.tools.inspection.reader import SUFFIXES, Reader, reader_of

# Maximum number of experts in all layers together; each takes some 220 bytes.
MAX_TOTAL_EXPERTS = 1 << 20
# Initial number of experts per layer for a log that does not give their number.
_FIRST_WIDTH = 64


class _Source:
    """A log, and its counts."""

    def __init__(self, index: int, path: Path, given_experts: int | None) -> None:
        self.path = path
        self.layers: dict[int | None, LayerSums] = {}
        self.top_k: dict[int | None, int] = {}
        self.largest_id = -1
        self._index = index
        self._given_experts = given_experts
        self.reader: Reader

    def read(self, file: BinaryIO, skip_bad_lines: bool, keep_repeated: bool, room: int) -> None:
        """Count the log. `room` is the number of experts that its layers may have together."""
        self.reader = reader_of(
            self.path, file, num_experts=self._given_experts, skip_bad_lines=skip_bad_lines
        )
        for layer, topk_ids in self.reader.pieces():
            largest = int(topk_ids.max())
            self.largest_id = max(self.largest_id, largest)
            sums = self.layers.get(layer)
            if sums is None:
                width = self.known_experts or _FIRST_WIDTH
                sums = self.layers[layer] = LayerSums(self._index, layer, width, keep_repeated)
                self.top_k[layer] = topk_ids.shape[1]
                self._check_width(room)
            if self.known_experts is None and largest >= sums.width:
                if largest >= MAX_EXPERTS:
                    raise ValueError(
                        f"{self.path}: topk_ids: expected ids below {MAX_EXPERTS}, got {largest}"
                    )
                sums.widen(1 << largest.bit_length())
                self._check_width(room)
            sums.add(topk_ids)
        for sums in self.layers.values():
            sums.close()

    def _check_width(self, room: int) -> None:
        if self.total_width() > room:
            raise ValueError(
                f"{self.path}: layers: expected at most {MAX_TOTAL_EXPERTS} experts in all layers "
                "of all logs together, got more"
            )

    @property
    def known_experts(self) -> int | None:
        """The number of experts, from the caller or else from the log."""
        return self.reader.num_experts if self._given_experts is None else self._given_experts

    @property
    def model(self) -> str | Path:
        """Identifies the model among the models of all logs."""
        return self.reader.model_id or self.path

    def total_width(self) -> int:
        return sum(sums.width for sums in self.layers.values())


def inspect_logs(
    paths: Sequence[Path],
    *,
    num_experts: int | None = None,
    skip_bad_lines: bool = False,
    keep_repeated: bool = False,
    progress: Progress | None = None,
) -> Document:
    """Read logs, and compute the document.

    Args:
        paths: routing logs (.jsonl), or ids [tokens, top_k] as .npy or .npz.
        num_experts: overrides the number in the logs.
        skip_bad_lines: skip and count bad lines of routing logs.
        keep_repeated: also count runs of equal rows as traffic.
        progress: called now and then with the number of bytes read since the last call.

    Raises:
        ValueError: a log cannot be read, or holds too little or too much.
    """
    sources: list[_Source] = []
    room = MAX_TOTAL_EXPERTS
    for index, path in enumerate(paths):
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path}: expected a .npy, .npz or .jsonl file")
        source = _Source(index, path, num_experts)
        try:
            with open_log(path, progress) as file:
                source.read(file, skip_bad_lines, keep_repeated, room)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}") from None
        room -= source.total_width()
        sources.append(source)

    logs = [_log(source, sources, num_experts is not None) for source in sources]
    models: dict[tuple[object, ...], Model] = {}
    for source, log in zip(sources, logs, strict=True):
        for layer, sums in source.layers.items():
            key = (source.model, log["num_experts"], source.top_k[layer])
            model = models.setdefault(
                key,
                {
                    "name": log["model_id"] or source.path.name,
                    "num_experts": log["num_experts"],
                    "top_k": source.top_k[layer],
                    "layers": [],
                    "advice": [],
                },
            )
            model["layers"].append(_figures(source, sums, log["num_experts"]))
    for model in models.values():
        model["advice"] = advice(model["layers"])
    return {
        "version": version(),
        "logs": logs,
        "models": list(models.values()),
        "limits": limits(logs, keep_repeated),
        "cost_model": COST_MODEL,
    }


def _figures(source: _Source, sums: LayerSums, num_experts: int) -> Layer:
    try:
        return sums.figures(num_experts)
    except ValueError as error:
        where = "" if sums.layer is None else f"layer {sums.layer}: "
        raise ValueError(f"{source.path}: {where}{error}") from None


def _log(source: _Source, sources: Sequence[_Source], is_given: bool) -> Log:
    reader = source.reader
    num_experts, origin = source.known_experts, "--experts" if is_given else "log"
    if num_experts is None:
        # Layers of one model have the same experts, whichever layer has the largest id.
        origin = "largest id + 1"
        num_experts = 1 + max(
            other.largest_id
            for other in sources
            if other.known_experts is None and other.model == source.model
        )
        if num_experts == 0:
            raise ValueError(
                f"{source.path}: no id to take the number of experts from: give --experts"
            )
    return {
        "file": str(source.path),
        "model_id": reader.model_id,
        "num_experts": num_experts,
        "num_experts_source": origin,
        "num_lines": reader.num_lines,
        "num_skipped": reader.num_skipped,
        "skipped": reader.skipped,
    }
