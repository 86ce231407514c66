"""The option --device of commands."""

from __future__ import annotations

import argparse

import tessera
from tessera._device import HOST, cuda_index_of
from tessera._library import torch_failure, torch_or_none


def add_device_argument(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Declare --device."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="D",
        help=f"{purpose}: cpu, cuda, cuda:N, or auto, cuda if it is available (default: auto)",
    )


def chosen_device(name: str, *, arrays: bool = True) -> int:
    """Index of the CUDA device to use, or HOST. With `arrays`, torch must be able to use it.

    Raises:
        ValueError: the device does not exist or is not available.
    """
    if name != "auto" and device_index(name) == HOST:
        return HOST
    backend = next(backend for backend in tessera.backends() if backend.name == "cuda")
    lacking = "" if backend.available else backend.detail
    if arrays and not lacking:
        lacking = _without_torch()
    if name == "auto":
        return HOST if lacking else 0
    if lacking:
        raise ValueError(f"--device {name}: unavailable: {lacking}")
    return device_index(name)


def device_name(index: int) -> str:
    """The name that `--device` takes and torch knows."""
    return "cpu" if index == HOST else f"cuda:{index}"


def device_index(name: str) -> int:
    """Index of the CUDA device that a name other than auto stands for, or HOST.

    Raises:
        ValueError: the name stands for neither.
    """
    try:
        return cuda_index_of("", name)
    except ValueError:
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None


def _without_torch() -> str:
    """Why torch cannot make arrays on a CUDA device; empty if it can."""
    torch = torch_or_none()
    if torch is None:
        failure = torch_failure()
        which = f"cannot be loaded ({failure})" if failure else "is not installed"
        return f"arrays on it are made with torch, which {which}"
    return "" if torch.cuda.is_available() else "torch finds no CUDA device"
