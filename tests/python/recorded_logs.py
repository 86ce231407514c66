"""Recorded routing logs, which are not in the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(
    os.environ.get("TESSERA_TRACES", Path(__file__).resolve().parents[2] / "../shared/traces")
)
OLMOE = "olmoe-1b-7b_layer0.jsonl"
QWEN = ("qwen1.5-moe-a2.7b_layer0.jsonl", "qwen1.5-moe-a2.7b_layer12.jsonl")


def recorded(name: str) -> Path:
    """The log of this name; skips the test if it does not exist."""
    if not (FOLDER / name).exists():
        pytest.skip(f"no recorded log {FOLDER / name}; TESSERA_TRACES names their folder")
    return FOLDER / name
