"""Calls that a drop-in has to refuse, and how it says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

# What a call has in place of good arguments, and the error's type and message.
Refusal = tuple[dict[str, Any], type[Exception], str]

NO_MEMORY = "expected a torch.Tensor with memory, got"


def refused(function: Callable[..., Any], arguments: dict[str, Any], refusal: Refusal) -> None:
    changes, error, message = refusal
    with pytest.raises(error) as caught:
        function(**arguments | changes)
    assert str(caught.value) == message
    assert type(caught.value) is error


def after(op: str, *refusals: Refusal) -> list[Refusal]:
    """The refusals with the op's name in front of their messages."""
    return [(changes, error, f"{op}: {message}") for changes, error, message in refusals]
