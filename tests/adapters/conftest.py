"""Stand-ins for vLLM and SGLang, imported for one test at a time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ENGINES = ("vllm", "sglang", "sgl_kernel")


def forget_engines() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ENGINES:
            del sys.modules[name]


@pytest.fixture
def use_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Lets a test import the engine in a folder; no patches are active when the test begins."""
    pytest.importorskip("torch", reason="torch is not installed")
    import engine_ops
    from tessera._patching import Patches

    for engine in ("vllm", "sglang"):
        for variable in (f"TESSERA_{engine.upper()}", f"TESSERA_{engine.upper()}_EXPERTS"):
            monkeypatch.delenv(variable, raising=False)
        adapter = importlib.import_module(f"tessera.{engine}")
        monkeypatch.setattr(adapter, "_patches", Patches(adapter._logger))
    forget_engines()
    engine_ops.calls.clear()

    def use(folder: Path) -> None:
        monkeypatch.syspath_prepend(folder)

    yield use
    forget_engines()
