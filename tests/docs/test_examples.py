"""Runs the Python examples as a user would, each in a process of its own."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples/python"


def run(example: str, folder: Path) -> str:
    """What an example prints; it has to exit with 0."""
    finished = subprocess.run(
        [sys.executable, EXAMPLES / example],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_align_numpy(tmp_path: Path) -> None:
    """The NumPy example computes the layer that a plain loop computes."""
    assert "largest difference from the plain loop: " in run("align_numpy.py", tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_align_torch(tmp_path: Path) -> None:
    """The torch example finds one allocation for all of its calls."""
    assert "same memory in every call: True" in run("align_torch.py", tmp_path)


def test_every_example_is_run() -> None:
    """A new example needs a test here."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"align_numpy.py", "align_torch.py"}
