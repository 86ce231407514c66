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
    owner: Any  # a module, or the class that has the method
    attribute: str
    original: Function
    replacement: Function
    serves: bool

    def put(self, old: Function, new: Function) -> None:
        """Replace one of both by the other, a function in every module that refers to it."""
        if isinstance(self.owner, ModuleType):
            _rebind(old, new)
        else:
            setattr(self.owner, self.attribute, new)


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
        served = (key for key, patch in self._patches.items() if patch is None or patch.serves)
        return [".".join(key) for key in served]

    @property
    def short_names(self) -> list[str]:
        """The same names without their modules, each once."""
        served = (key for key, patch in self._patches.items() if patch is None or patch.serves)
        return list(dict.fromkeys(name for _, name in served))

    def replace(
        self, module: ModuleType, name: str, parameters: Sequence[str], serve: Function
    ) -> bool:
        """Let `serve` handle the calls of a function, in every module that refers to it.

        `name` may be that of a method, such as "Class.method". A function that does not exist, or
        has other first parameters, is left alone.

        Returns:
            Whether something changed: a function is replaced only once.
        """
        original = self._original(module, name, parameters)
        if original is None:
            return False
        replacement = self._replacement(f"{module.__name__}.{name}", original, serve)
        self._put(module, name, original, replacement, serves=True)
        return True

    def watch(
        self,
        module: ModuleType,
        name: str,
        parameters: Sequence[str],
        describe: Callable[..., str],
    ) -> None:
        """Log what `describe` says about the calls of a function, every message once.

        The function, which is named and left alone as by `replace`, stays the package's own.
        """
        original = self._original(module, name, parameters)
        if original is None:
            return

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.active:
                self._log_once(logging.INFO, describe(*args, **kwargs))
            return original(*args, **kwargs)

        self._put(module, name, original, watched, serves=False)

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
        full_name = f"{module.__name__}.{name}"
        register(full_name, self._replacement(full_name, original, serve))
        self._patches[module.__name__, name] = None
        return True

    def restore(self) -> list[str]:
        """Restore every original; returns the names of the functions that Tessera served."""
        served = self.names if self.active else []
        self.active = False
        for key, patch in list(self._patches.items()):
            if patch is not None:
                patch.put(patch.replacement, patch.original)
                del self._patches[key]
        return served

    def _put(
        self,
        module: ModuleType,
        name: str,
        original: Function,
        replacement: Function,
        *,
        serves: bool,
    ) -> None:
        patch = _Patch(*_place(module, name), original, replacement, serves)
        patch.put(original, replacement)
        self._patches[module.__name__, name] = patch

    def _replacement(self, name: str, original: Function, serve: Function) -> Function:
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
                    message = f"{name} gets a call that Tessera refuses: {refusal}"
                    self._log_once(logging.WARNING, message)
            return original(*args, **kwargs)

        return replacement

    def _original(
        self, module: ModuleType, name: str, parameters: Sequence[str]
    ) -> Function | None:
        """The function, if it has the expected parameters and is not served yet."""
        key = (module.__name__, name)
        if key in self._patches:
            return None
        function: Function | None = getattr(*_place(module, name), None)
        names = [] if function is None else list(inspect.signature(function).parameters)
        if names[: len(parameters)] != list(parameters):
            expected, got = ", ".join(parameters), ", ".join(names) or "no such function"
            message = f"{'.'.join(key)} is left alone: expected ({expected}), got ({got})"
            self._log_once(logging.WARNING, message)
            return None
        return function

    def _log_once(self, level: int, message: str) -> None:
        reason = re.sub(r"\d+", "#", message)  # the same reason occurs with many sizes
        if reason not in self._reasons:
            self._reasons.add(reason)
            self._logger.log(level, message)


def by_name(serve: Function, parameters: Sequence[str]) -> Function:
    """A function with parameters in this order that calls `serve`, which has them in another."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(parameters):
            raise TypeError(f"expected at most {len(parameters)} arguments, got {len(args)}")
        return serve(**dict(zip(parameters, args, strict=False)), **kwargs)

    return call


def _place(module: ModuleType, name: str) -> tuple[Any, str]:
    """Where a name such as "function" or "Class.method" is: the owner, and its attribute."""
    owner, _, attribute = name.rpartition(".")
    return (getattr(module, owner, None) if owner else module), attribute


def _rebind(old: object, new: object) -> None:
    """Replace `old` by `new` in every module, under whatever name."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)
