"""The pictures of the pages are those that `tessera inspect` draws today."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACES = Path(os.environ.get("TESSERA_TRACES", ROOT / "../shared/traces"))


def test_pictures_are_drawn_from_the_logs() -> None:
    """Every picture has the bytes that its log's inspection gives, and every one is shown."""
    if not TRACES.is_dir():
        pytest.skip(f"no recorded logs in {TRACES}; TESSERA_TRACES names their folder")
    if importlib.util.find_spec("jinja2") is None:
        pytest.skip("jinja2 is not installed")
    finished = subprocess.run(
        [sys.executable, ROOT / "scripts/docs_pictures.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    message = f"{finished.stdout}{finished.stderr}scripts/docs_pictures.py draws them anew"
    assert finished.returncode == 0, message
