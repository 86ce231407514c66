"""`tessera._patching` on any package, without an engine."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from tessera._patching import Patches  # noqa: E402
from tessera._plain_tensor import check_plain  # noqa: E402

LOGGER = logging.getLogger("tessera.test")


def double(x: Any) -> Any:
    return x * 2


def served(x: Any) -> Any:
    check_plain("double", "x", x)
    return x.sum()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with a function, and another one that has imported it under another name."""
    module, importer = ModuleType("package"), ModuleType("package.importer")
    module.__dict__["double"] = double
    importer.__dict__["twice"] = double
    monkeypatch.setitem(sys.modules, "package", module)
    monkeypatch.setitem(sys.modules, "package.importer", importer)
    monkeypatch.setitem(globals(), "double", None)  # this module has imported it, too
    return module


@pytest.fixture
def patches(package: ModuleType) -> Patches:
    found = Patches(LOGGER)
    assert found.replace(package, "double", ["x"], served)
    found.active = True
    return found


def test_all_names_are_replaced_and_restored(package: ModuleType, patches: Patches) -> None:
    importer = sys.modules["package.importer"]
    assert importer.twice is package.double
    assert package.double(torch.ones(3)).item() == 3
    assert patches.restore() == ["package.double"]
    assert importer.twice is package.double
    assert package.double(torch.ones(3)).tolist() == [2, 2, 2]
    assert patches.restore() == []


def test_replacement_that_another_package_wraps_becomes_idle(
    package: ModuleType, patches: Patches
) -> None:
    replacement = package.double
    package.__dict__["double"] = lambda x: replacement(x) + 1
    assert package.double(torch.ones(3)).item() == 4
    patches.restore()
    assert package.double(torch.ones(3)).tolist() == [3, 3, 3]


def test_other_errors_are_not_swallowed(package: ModuleType) -> None:
    def fails(x: Any) -> None:
        raise RuntimeError("out of memory")

    patches = Patches(LOGGER)
    patches.replace(package, "double", ["x"], fails)
    patches.active = True
    with pytest.raises(RuntimeError, match="out of memory"):
        package.double(torch.ones(3))


def test_fake_tensors_go_to_the_original(package: ModuleType, patches: Patches) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.ones(3))
        assert package.double(fake).shape == (3,)


def test_compiled_code_calls_the_original(package: ModuleType, patches: Patches) -> None:
    def layer(x: Any) -> Any:
        return package.double(x) + 1

    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert compiled(torch.ones(3)).tolist() == [3, 3, 3]
    assert layer(torch.ones(3)).item() == 4


def test_a_reason_is_told_once_whatever_its_numbers(
    package: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(x: Any) -> None:
        raise ValueError(f"expected 3 elements, got {x.numel()}")

    patches = Patches(LOGGER)
    patches.replace(package, "double", ["x"], refuses)
    patches.active = True
    assert [package.double(torch.ones(n)).numel() for n in (5, 6)] == [5, 6]
    assert [record.getMessage() for record in caplog.records] == [
        "package.double gets a call that Tessera refuses: expected 3 elements, got 5"
    ]
