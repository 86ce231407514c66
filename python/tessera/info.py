"""What this build of Tessera is, and what a call would run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tessera._device import cuda_index_of
from tessera._library import dlpack_device, load, refusal
from tessera._outputs import ALIGN


@dataclass(frozen=True)
class Backend:
    """A backend that Tessera knows; `detail` says what it runs on, or why it is unavailable."""

    name: str
    available: bool
    detail: str


@dataclass(frozen=True)
class Implementation:
    """An implementation of an op.

    `refusal` says why it does not run, and is empty if it could; `plan` says how it would.
    """

    name: str
    refusal: str
    plan: str
    selected: bool


def version() -> str:
    """Version of the compiled library, "major.minor.patch"."""
    return str(load().function("version")())


def build() -> str:
    """Compiler and build type of the compiled library."""
    return str(load().function("build")())


def backends() -> list[Backend]:
    """Every backend, available or not."""
    return [Backend(**fields) for fields in load().read_json("backends")]


def explain(
    num_ids: int,
    num_experts: int,
    block_size: int,
    *,
    pad_sorted_ids: bool = False,
    num_threads: int | None = None,
    device: Any = "cpu",
) -> list[Implementation]:
    """What `align_block_size` would run for this shape, and why not the others, fastest first.

    Args:
        num_ids: N, the number of elements of `topk_ids`.
        num_experts: as for `align_block_size`, and so are the others.
        block_size: slots in a block.
        pad_sorted_ids: whether the capacity is rounded up.
        num_threads: host threads to use at most.
        device: "cpu", "cuda", "cuda:1", the number of a CUDA device, or a `torch.device`.

    Returns:
        All implementations for this device; none where `backends()` says that it is unavailable.

    Raises:
        ValueError: the shape lies outside the op's domain, or there is no such device.
    """
    threads = 0 if num_threads is None else num_threads
    place = dlpack_device(cuda_index_of("align_block_size", device))
    try:
        numbers = (block_size, num_experts, False, pad_sorted_ids, -1)
        reports = json.loads(ALIGN.explain(*place, threads, num_ids, None, *numbers))
    except Exception as error:
        integers = {
            "num_ids": num_ids,
            "block_size": block_size,
            "num_experts": num_experts,
            "num_threads": threads,
        }
        raise refusal("align_block_size", error, {}, integers) from None
    return [Implementation(**fields) for fields in reports]
