"""Skips the tests of this folder, and says why, where calls cannot run on a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest

import tessera


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    if ours and (obstacle := _obstacle()):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=obstacle))
