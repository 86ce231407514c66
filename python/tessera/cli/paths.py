"""Paths on a command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def nonempty_path(text: str) -> Path:
    """An argument type: `Path` alone takes an empty name, as of an unset variable, for "."."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty name")
    return Path(text)
