"""Skips the tests of this folder, with the reason, if there is no CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest

import tessera
from cuda_strict_calls import OPTIONS, ids_on_device


def _obstacle() -> str:
    """Why there are no calls on a CUDA device here; empty if there can be."""
    backend = next(backend for backend in tessera.backends() if backend.name == "cuda")
    if not backend.available:
        return f"no CUDA device: {backend.detail}"
    try:
        import torch
    except ImportError:
        return "no CUDA device: torch is not installed"
    return "" if torch.cuda.is_available() else "no CUDA device: torch finds none"


@pytest.fixture
def memory_for_reports() -> None:
    """A validated call, as there has to be one before a graph is captured; and nothing unread."""
    tessera.align_block_size(ids_on_device(bad=False), validate=True, **OPTIONS)
    tessera.check(raise_invalid=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    if ours and (obstacle := _obstacle()):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=obstacle))
