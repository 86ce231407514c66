"""Functions of other packages, replaced such that what Tessera refuses goes to the original."""

from __future__ import annotations

import functools
import inspect
import logging
import re
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

Function = Callable[..., Any]

# What Tessera raises for calls outside its domain; nothing has been written then.
_REFUSALS = (NotImplementedError, TypeError, ValueError)


class _Patch(NamedTuple):
    original: Function
    replacement: Function


class Patches:
    """The functions of one package that are replaced in this process.

    While `active` is false every replacement is the original, also one that cannot be taken back
    because another package has wrapped it.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.active = False
        # Held while patches change; importing a package can come back to its plugins.
        self.lock = threading.RLock()
        self._logger = logger
        self._patches: dict[tuple[str, str], _Patch] = {}
        self._reasons: set[str] = set()

    def replace(
        self, module: ModuleType, name: str, parameters: Sequence[str], serve: Function
    ) -> bool:
        """Let `serve` have the calls of a function, in every module that knows it by any name.

        A function that is not there, or whose first parameters are others, is left alone.

        Returns:
            Whether something changed: a function is replaced once.
        """
        key = (module.__name__, name)
        if key in self._patches:
            return False
        original = getattr(module, name, None)
        if original is None or not begins_with(original, parameters):
            self._warn_once(f"{'.'.join(key)} is left alone: expected {name}({', '.join(parameters)})")
            return False

        @functools.wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return self.call(serve, original, *args, **kwargs)

        rebind(original, replacement)
        self._patches[key] = _Patch(original, replacement)
        return True

    def restore(self) -> list[str]:
        """Put every original back; the names of those that were replaced."""
        self.active = False
        for patch in self._patches.values():
            rebind(patch.replacement, patch.original)
        names = self.names
        self._patches.clear()
        return names

    @property
    def names(self) -> list[str]:
        """Full names of the functions that are replaced."""
        return [f"{module}.{name}" for module, name in self._patches]

    def call(self, serve: Function, original: Function, /, *args: Any, **kwargs: Any) -> Any:
        """What `serve` returns; what `original` returns, if `serve` refuses the call."""
        import torch

        # torch.compile can look into a package's own op, and not into Tessera's library.
        if self.active and not torch.compiler.is_compiling():
            try:
                return serve(*args, **kwargs)
            except _REFUSALS as refusal:
                self._warn_once(
                    f"{original.__module__}.{original.__name__} gets a call that Tessera refuses: "
                    f"{refusal}"
                )
        return original(*args, **kwargs)

    def _warn_once(self, message: str) -> None:
        reason = re.sub(r"\d+", "#", message)  # the same reason comes with many sizes
        if reason not in self._reasons:
            self._reasons.add(reason)
            self._logger.warning(message)


def rebind(old: object, new: object) -> None:
    """Put `new` in the place of `old` in every module that has it, under whatever name."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)


def begins_with(function: Function, parameters: Sequence[str]) -> bool:
    """Whether these are the first parameters of a function."""
    names = list(inspect.signature(function).parameters)
    return names[: len(parameters)] == list(parameters)
