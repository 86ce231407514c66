"""What `tessera align` works on: synthetic ids, arrays from a file, or a recorded routing log."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.cli.progress_bars import reading_bar
from tessera.contract import synthetic_topk_ids
from tessera.routing_log import read_routing_log


@dataclass(frozen=True)
class Workload:
    """One call's inputs, and how to name it; `layer` is None unless it comes from a log."""

    topk_ids: npt.NDArray[Any]
    num_experts: int
    expert_map: npt.NDArray[Any] | None = None
    layer: int | None = None


@dataclass(frozen=True)
class Input:
    """Where the workloads come from, and what the reader should know about it."""

    title: str
    workloads: list[Workload]
    note: str = ""


def synthetic_input(
    num_tokens: int, num_experts: int, top_k: int, distribution: str, seed: int
) -> Input:
    """Random ids, all different inside a token.

    Raises:
        ValueError: there are fewer experts than that takes.
    """
    if top_k > num_experts:
        raise ValueError(
            f"--top-k: expected at most as many as --experts, {num_experts}, got {top_k}"
        )
    topk_ids = synthetic_topk_ids(
        num_tokens, num_experts, top_k, zipf=distribution == "zipf", seed=seed
    )
    title = (
        f"synthetic, {num_tokens} tokens, {num_experts} experts, top {top_k}, "
        f"{distribution}, seed {seed}"
    )
    return Input(title, [Workload(topk_ids, num_experts)])


def read_input(path: Path, num_experts: int | None) -> Input:
    """Read a file by its suffix. `num_experts` overrides what the file says.

    Raises:
        ValueError: the file is none of the known kinds, or broken.
    """
    if path.suffix == ".jsonl":
        return _log_input(path, num_experts)
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"{path}: expected a .npy, .npz or .jsonl file")
    try:
        content = np.load(path, allow_pickle=False)
        arrays = {"topk_ids": content} if path.suffix == ".npy" else dict(content)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected NumPy arrays ({error})") from None
    if "topk_ids" not in arrays:
        raise ValueError(f"{path}: expected an array topk_ids, got {sorted(arrays)}")
    declared = arrays.get("num_experts")
    if declared is not None and (declared.size != 1 or declared.dtype.kind not in "iu"):
        raise ValueError(f"{path}: num_experts: expected one integer, got {declared.tolist()}")
    topk_ids = np.ascontiguousarray(arrays["topk_ids"])
    if num_experts is None and declared is not None:
        num_experts = int(declared.item())
    count, note = _known_experts(path, num_experts, [topk_ids])
    return Input(str(path), [Workload(topk_ids, count, arrays.get("expert_map"))], note)


def _log_input(path: Path, num_experts: int | None) -> Input:
    with reading_bar([path]) as progress:
        log = read_routing_log(path, progress)
    layers = log.layers
    count, note = _known_experts(path, num_experts or log.num_experts, list(layers.values()))
    workloads = [Workload(ids, count, layer=layer) for layer, ids in layers.items()]
    return Input(f"{path} ({log.model_id or 'unnamed model'})", workloads, note)


def _known_experts(
    path: Path, num_experts: int | None, arrays: list[npt.NDArray[Any]]
) -> tuple[int, str]:
    """The number of experts, and a note if it had to be taken from the ids."""
    if num_experts is not None:
        return num_experts, ""
    largest = max((int(ids.max()) for ids in arrays if ids.size), default=-1)
    if largest < 0:
        raise ValueError(f"{path}: no id to take the number of experts from: give --experts")
    count = largest + 1
    return count, f"the file does not tell the number of experts: {count} is its largest id + 1"
