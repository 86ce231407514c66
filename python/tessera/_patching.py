"""Replaces functions of other packages; calls that Tessera refuses go to the originals."""

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

from tessera.strict import InvalidRoutingError

Function = Callable[..., Any]

# Errors that Tessera raises for calls outside its domain, before anything is written.
_REFUSALS = (NotImplementedError, TypeError, ValueError)


class _Patch(NamedTuple):
    original: Function
    replacement: Function


class Patches:
    """The functions of one package that Tessera serves in this process.

    While `active` is false the originals serve every call, even if a replacement cannot be removed
    because another package has wrapped it or keeps it as a hook.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.active = False
        # Held while patches change; importing a package can come back through its plugins.
        self.lock = threading.RLock()
        self._logger = logger
        # By module and name; None for a hook, which the package itself installs.
        self._patches: dict[tuple[str, str], _Patch | None] = {}
        self._reasons: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Full names of the functions that have a replacement or a hook."""
        return [".".join(key) for key in self._patches]

    def replace(
        self, module: ModuleType, name: str, parameters: Sequence[str], serve: Function
    ) -> bool:
        """Let `serve` handle the calls of a function, in every module that refers to it.

        A function that does not exist, or has other first parameters, is left alone.

        Returns:
            Whether something changed: a function is replaced only once.
        """
        original = self._original(module, name, parameters)
        if original is None:
            return False
        replacement = self._replacement(original, serve)
        _rebind(original, replacement)
        self._patches[module.__name__, name] = _Patch(original, replacement)
        return True

    def hook(
        self,
        module: ModuleType,
        name: str,
        parameters: Sequence[str],
        serve: Function,
        register: Callable[[str, Function], object],
    ) -> bool:
        """Like `replace`, but calls `register` with the function's full name and replacement."""
        original = self._original(module, name, parameters)
        if original is None:
            return False
        register(f"{module.__name__}.{name}", self._replacement(original, serve))
        self._patches[module.__name__, name] = None
        return True

    def restore(self) -> list[str]:
        """Restore every original; returns the names of the functions that Tessera served."""
        served = self.names if self.active else []
        self.active = False
        for key, patch in list(self._patches.items()):
            if patch is not None:
                _rebind(patch.replacement, patch.original)
                del self._patches[key]
        return served

    def _replacement(self, original: Function, serve: Function) -> Function:
        from torch.compiler import is_compiling

        @functools.wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            # torch.compile can trace a package's own op, but not Tessera's library.
            if self.active and not is_compiling():
                try:
                    return serve(*args, **kwargs)
                except InvalidRoutingError:
                    raise  # not a refusal: the call has run, and the original must not get bad ids
                except _REFUSALS as refusal:
                    name = f"{original.__module__}.{original.__name__}"
                    self._warn_once(f"{name} gets a call that Tessera refuses: {refusal}")
            return original(*args, **kwargs)

        return replacement

    def _original(
        self, module: ModuleType, name: str, parameters: Sequence[str]
    ) -> Function | None:
        """The function, if it has the expected parameters and is not served yet."""
        key = (module.__name__, name)
        if key in self._patches:
            return None
        function: Function | None = getattr(module, name, None)
        names = [] if function is None else list(inspect.signature(function).parameters)
        if names[: len(parameters)] != list(parameters):
            expected, got = ", ".join(parameters), ", ".join(names) or "no such function"
            self._warn_once(f"{'.'.join(key)} is left alone: expected ({expected}), got ({got})")
            return None
        return function

    def _warn_once(self, message: str) -> None:
        reason = re.sub(r"\d+", "#", message)  # the same reason occurs with many sizes
        if reason not in self._reasons:
            self._reasons.add(reason)
            self._logger.warning(message)


def by_name(serve: Function, parameters: Sequence[str]) -> Function:
    """A function with parameters in this order that calls `serve`, which has them in another."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(parameters):
            raise TypeError(f"expected at most {len(parameters)} arguments, got {len(args)}")
        return serve(**dict(zip(parameters, args, strict=False)), **kwargs)

    return call


def _rebind(old: object, new: object) -> None:
    """Replace `old` by `new` in every module, under whatever name."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)
