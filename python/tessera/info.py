"""What this build of Tessera is, and what a call would run."""

from __future__ import annotations

from dataclasses import dataclass

from tessera._library import load, refusal


@dataclass(frozen=True)
class Backend:
    """A backend that Tessera knows; `detail` says what it runs on, or why it is unavailable."""

    name: str
    available: bool
    detail: str


@dataclass(frozen=True)
class Implementation:
    """An implementation of an op; `refusal` says why it does not run, and is empty if it could."""

    name: str
    refusal: str
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
) -> list[Implementation]:
    """What `align_block_size` would run on the host for this shape, and why not the others.

    Raises:
        ValueError: the shape lies outside the op's domain.
    """
    threads = 0 if num_threads is None else num_threads
    try:
        reports = load().read_json(
            "align_block_size_explain", num_ids, block_size, num_experts, pad_sorted_ids, threads
        )
    except Exception as error:
        integers = {
            "num_ids": num_ids,
            "block_size": block_size,
            "num_experts": num_experts,
            "num_threads": threads,
        }
        raise refusal(error, {}, integers) from None
    return [Implementation(**fields) for fields in reports]
