"""The programs in bench/ as modules, whose pages read results in the test's folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Gives modules by their name; after the test none of them is left."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    monkeypatch.setattr(importlib.import_module("page_text"), "RESULTS", tmp_path)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
