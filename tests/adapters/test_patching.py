"""`tessera._patching` on any package, without an engine."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from tessera._patching import Patches, Target  # noqa: E402
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
    found.replace([Target(package, "double", ["x"], served)])
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


def test_hooks_and_wrapped_replacements_of_some_names_become_idle(
    package: ModuleType, patches: Patches
) -> None:
    """While others stay active."""
    replacement = package.double
    package.__dict__["double"] = lambda x: replacement(x) + 1
    package.__dict__["other"] = lambda x: x * 5
    target = Target(package, "other", ["x"], served)
    hooks: list[Any] = []
    patches.hook(target, lambda name, hook: hooks.append(hook))
    patches.restore(["double", "other"])
    assert (patches.names, patches.short_names, patches.active) == ([], [], True)
    assert package.double(torch.ones(3)).tolist() == [3, 3, 3]
    assert hooks[0](torch.ones(3)).tolist() == [5, 5, 5]
    patches.hook(target, lambda name, hook: hooks.append(hook))
    assert patches.names == ["package.other"]
    assert [hook(torch.ones(3)).item() for hook in hooks] == [3]


class Layer:
    def double(self, x: Any) -> Any:
        return x * 2


@pytest.fixture
def layers(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Patches:
    """The method is served, and the constructor is watched."""
    kind = type("Layer", (Layer,), {"double": Layer.double, "__init__": lambda self, n: None})
    monkeypatch.setitem(package.__dict__, "Layer", kind)
    found = Patches(LOGGER)
    found.replace(
        [Target(package, "Layer.double", ["self", "x"], lambda self, x: served(x))],
        [Target(package, "Layer.__init__", ["self", "n"], lambda self, n: f"{n + 1} layers")],
    )
    found.active = True
    return found


def test_methods_are_replaced_and_restored(package: ModuleType, layers: Patches) -> None:
    kind = package.__dict__["Layer"]
    assert layers.names == ["package.Layer.double"]
    assert kind(1).double(torch.ones(3)).item() == 3
    layers.restore(["Layer.double"])
    assert (layers.names, layers.active) == ([], True)
    assert kind(1).double(torch.ones(3)).tolist() == [2, 2, 2]
    assert vars(kind)["double"] is Layer.double


def test_methods_that_another_package_wraps_stay_wrapped(
    package: ModuleType, layers: Patches
) -> None:
    kind = package.__dict__["Layer"]
    replacement = kind.double
    kind.double = lambda self, x: replacement(self, x) + 1
    layers.restore()
    assert kind(1).double(torch.ones(3)).tolist() == [3, 3, 3]


def test_what_is_watched_never_fails(
    package: ModuleType, layers: Patches, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kind = package.__dict__["Layer"]
    kind(1), kind("one"), kind("one")
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        kind()
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "2 layers"
    assert second.startswith("package.Layer.__init__ cannot be described: TypeError(")


def test_other_errors_are_not_swallowed(package: ModuleType) -> None:
    def fails(x: Any) -> None:
        raise RuntimeError("out of memory")

    patches = Patches(LOGGER)
    patches.replace([Target(package, "double", ["x"], fails)])
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
    patches.replace([Target(package, "double", ["x"], refuses)])
    patches.active = True
    assert [package.double(torch.ones(n)).numel() for n in (5, 6)] == [5, 6]
    assert [record.getMessage() for record in caplog.records] == [
        "package.double gets a call that Tessera refuses: expected 3 elements, got 5"
    ]


@pytest.mark.parametrize("value", ["0", "1", "", None, "false", "no", "off", " 0", "2"])
def test_only_0_switches_off_and_other_values_are_told_once(
    patches: Patches,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    value: str | None,
) -> None:
    if value is not None:
        monkeypatch.setenv("TESSERA_ENGINE", value)
    assert [patches.switched_off("TESSERA_ENGINE") for _ in range(2)] == [value == "0"] * 2
    expected = f"TESSERA_ENGINE: expected 0 or 1, got {value!r}, which is ignored: only 0 turns it "
    told = [] if value in ("0", "1", "", None) else [expected + "off"]
    assert [each.getMessage() for each in caplog.records] == told
