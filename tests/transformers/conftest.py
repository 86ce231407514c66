"""What the tests of transformers share: what is said once is said again in each test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import tessera.transformers


@pytest.fixture
def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """The warnings of the adapter so far."""
    monkeypatch.setattr(tessera.transformers.experts, "_said", set())
    return lambda: [
        one.getMessage() for one in caplog.records if one.name == "tessera.transformers"
    ]


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
