"""The programs in bench/ as modules, for one test at a time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@contextmanager
def _modules_of_one_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Gives modules by their name; none of them is left for another test to find."""
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if str(BENCH) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Gives modules by their name."""
    with _modules_of_one_test(monkeypatch) as module:
        yield module


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Gives modules by their name, whose pages read results in the test's folder."""
    with _modules_of_one_test(monkeypatch) as module:
        monkeypatch.setattr(module("page_text"), "RESULTS", tmp_path)
        yield module
