"""Inputs of `tessera align`: synthetic ids, or the layers of a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tessera._device import HOST
from tessera._library import refusal
from tessera._outputs import REFERENCE, output_sizes
from tessera.cli.progress_bars import reading_bar
from tessera.contract import synthetic_topk_ids
from tessera.routing_log import LayerKey
from tessera.tools.inspection.repeated import SHORTEST_RUN, RepeatedRows
from tessera.tools.output_files import is_input
from tessera.tools.routing_files import STANDARD_INPUT, Options, largest_id
from tessera.tools.routing_files.whole import read_whole

# Memory limits of a control group, in versions 2 and 1, as a container sees them.
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Workload:
    """One call's inputs.

    layer: None unless a file names it.
    least_top_k: ids of the row with the fewest, None if rows have as many slots each.
    """

    topk_ids: npt.NDArray[Any]
    num_experts: int
    expert_map: npt.NDArray[Any] | None = None
    layer: LayerKey = None
    least_top_k: int | None = None


@dataclass(frozen=True)
class Input:
    """Workloads, with a title and a note for the user."""

    title: str
    workloads: list[Workload]
    note: str = ""


def synthetic_input(
    tokens: int, top_k: int, distribution: str, seed: int, experts: int, block_size: int
) -> Input:
    """Random ids, all different inside a token.

    Raises:
        ValueError: there are too few experts, the ids lie outside the op's domain, or there is not
            enough memory for them and for outputs with blocks of `block_size` slots.
    """
    if top_k > experts:
        raise ValueError(f"--top-k: expected at most as many as --experts, {experts}, got {top_k}")
    require_memory(tokens, top_k, experts, block_size)
    topk_ids = synthetic_topk_ids(tokens, experts, top_k, zipf=distribution == "zipf", seed=seed)
    sizes = f"{tokens} tokens, {experts} experts, top {top_k}"
    title = f"synthetic, {sizes}, {distribution}, seed {seed}"
    return Input(title, [Workload(topk_ids, experts)])


def require_memory(tokens: int, top_k: int, experts: int, block_size: int) -> None:
    """Refuse synthetic ids before they are made.

    Raises:
        ValueError: they lie outside the op's domain, or they and their outputs need more memory
            than is available.
    """
    num_ids = tokens * top_k
    try:
        num_slots, num_blocks, _ = output_sizes(
            num_ids, block_size, experts, False, HOST, REFERENCE
        )
    except Exception as error:
        raise refusal("align_block_size", error, {}, {"num_ids": num_ids}) from None
    # Making them takes 12 bytes per id; later there are the ids and the outputs.
    needed = max(12 * num_ids, 4 * (num_ids + num_slots + num_blocks))
    if needed > (available := _available_bytes()):
        raise ValueError(
            f"--tokens: expected ids and outputs that fit into {available / 1e9:.1f} GB of memory, "
            f"got {tokens} tokens, which take {needed / 1e9:.1f} GB"
        )


def _available_bytes() -> int:
    """Memory available to this process, as far as the system reports it."""
    found = sys.maxsize
    with suppress(OSError):
        values = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found = 1024 * int(values["MemAvailable"].removesuffix("kB"))
    for file in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # ValueError: "max" means no limit
            found = min(found, int(Path(file).read_text()))
    return found


def read_input(path: Path, options: Options) -> Input:
    """Read a file of routing; every layer becomes a workload.

    Raises:
        ValueError: the file is in no known form, is broken, or holds no ids of tokens.
    """
    with reading_bar([path]) as progress:
        routing = read_whole(path, options, progress)
    layers = routing.layers
    count, note = _known_experts(routing.num_experts, list(layers.values()))
    workloads = [
        Workload(ids, count, routing.expert_map, layer, routing.least_top_k.get(layer))
        for layer, ids in layers.items()
    ]
    title = routing.name if routing.model_id is None else f"{routing.name} ({routing.model_id})"
    return Input(title, workloads, "; ".join(filter(None, [note, *routing.notes])))


def refuse_repeated(name: str, paths: Sequence[Path]) -> None:
    """Refuse a file that is given twice, also under different spellings or through links."""
    for place, path in enumerate(paths):
        for other in paths[:place]:
            if path == other or is_input(path, other) or is_input(other, path):
                known = "standard input" if other == STANDARD_INPUT else other
                raise ValueError(
                    f"{name}: expected every file once, got {path}"
                    + (" twice" if path == other else f", which is {known}")
                )


def _known_experts(num_experts: int | None, arrays: list[npt.NDArray[Any]]) -> tuple[int, str]:
    """The number of experts, and a note if it is taken from the ids or there is warm-up."""
    if num_experts is not None:
        return num_experts, _repeated_note(arrays)
    count = 1 + max(largest_id(ids) for ids in arrays)
    origin = f"the file does not give the number of experts: {count} is its largest id + 1"
    return count, "; ".join(filter(None, [origin, _repeated_note(arrays)]))


def _repeated_note(arrays: list[npt.NDArray[Any]]) -> str:
    """A note on rows that `tessera inspect` would exclude."""
    num_rows = 0
    for ids in arrays:
        if ids.ndim == 2 and ids.size:
            repeated = RepeatedRows()
            repeated.split(ids)
            repeated.rest()
            num_rows += repeated.num_rows
    if not num_rows:
        return ""
    return (
        f"{num_rows:,} rows are in runs of {SHORTEST_RUN} or more equal rows, as from an engine's "
        "warm-up: they are aligned here, but tessera inspect excludes them"
    )
