"""What the tests of transformers share: the warnings of the adapter, and the calls it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tessera


@pytest.fixture
def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """The warnings of the adapter so far; nothing was said when the test begins."""
    from tessera.transformers import experts

    monkeypatch.setattr(experts, "_said", set())
    name = "tessera.transformers"
    return lambda: [one.getMessage() for one in caplog.records if one.name == name]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keyword arguments of each call of `fused_experts`, and its inputs as `args`."""
    made: list[dict[str, Any]] = []
    function = tessera.fused_experts

    def counting(*args: Any, **options: Any) -> Any:
        made.append({"args": args, **options})
        return function(*args, **options)

    monkeypatch.setattr(tessera, "fused_experts", counting)
    return made
