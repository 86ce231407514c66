"""Runs programs in separate processes, for tests."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def _without_torch() -> Iterator[str]:
    """A folder that, when first in PYTHONPATH, hides torch, whose import takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "torch.py").write_text("raise ImportError('hidden from this process')\n")
        yield folder


def run_program(
    command: list[str], cwd: str | Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run it without torch, and with no TESSERA_ variables but those given."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TESSERA_")}
    with _without_torch() as folder:
        return subprocess.run(
            command,
            cwd=cwd,
            env=environment | {"PYTHONPATH": folder} | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
