"""Stand-ins for vLLM and SGLang, imported for one test at a time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine_packages import STANDINS

ENGINES = ("vllm", "sglang", "sgl_kernel")

UseEngine = Callable[[Path], None]

# Stand-ins of vLLM with a class TritonExperts that sums; 0.9.2 has the function alone.
_WITH_CLASS = ("0.12.0", "0.24.0", "0.33.0")


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


@pytest.fixture(params=["0.9.2", *_WITH_CLASS])
def version(request: pytest.FixtureRequest, use_engine: UseEngine) -> str:
    """A vLLM whose experts are served."""
    name = str(request.param)
    use_engine(STANDINS / f"vllm-{name}")
    return name


@pytest.fixture(params=_WITH_CLASS)
def with_class(request: pytest.FixtureRequest, use_engine: UseEngine) -> str:
    """A vLLM with TritonExperts."""
    name = str(request.param)
    use_engine(STANDINS / f"vllm-{name}")
    return name
