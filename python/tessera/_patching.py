"""Replaces functions of other packages; calls that Tessera refuses go to the originals."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from tessera.strict import InvalidRoutingError

Function = Callable[..., Any]
_Key = tuple[str, str]  # module and name

# Errors that Tessera raises for calls outside its domain, before anything is written.
REFUSALS = (NotImplementedError, TypeError, ValueError)


class LeftToOriginalError(NotImplementedError):
    """Leaves a call to the original without a message.

    The original calls another function that Tessera serves, which says why it refuses.
    """


class Target(NamedTuple):
    """A function of another package, or a method, such as "Class.method", and what serves it."""

    module: ModuleType
    name: str
    parameters: Sequence[str]  # the first ones that it must have
    serve: Function


class _Patch(NamedTuple):
    original: Function
    replacement: Function
    serves: bool


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
        # None for a hook, which the package itself installs.
        self._patches: dict[_Key, _Patch | None] = {}
        # Those that were restored while others stay; their replacements may still be called.
        self._idle: set[_Key] = set()
        self._reasons: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Full names of the functions that have a replacement or a hook which serves them."""
        return [".".join(key) for key in self._served_keys()]

    @property
    def served(self) -> list[str] | None:
        """The names while active; else None."""
        return self.names if self.active else None

    @property
    def short_names(self) -> list[str]:
        """The same names without their modules, each once."""
        return list(dict.fromkeys(name for _, name in self._served_keys()))

    def _served_keys(self) -> list[_Key]:
        return [
            key
            for key, patch in self._patches.items()
            if key not in self._idle and (patch is None or patch.serves)
        ]

    def switched_off(self, variable: str) -> bool:
        """Whether an environment variable is 0, not 1, empty or unset.

        Other values are warned of and ignored: an engine must not fail at its start for one.
        """
        value = os.environ.get(variable, "")
        if value not in ("", "0", "1"):
            message = f"{variable}: expected 0 or 1, got {value!r}, which is ignored: only 0 turns "
            self._log_once(logging.WARNING, message + "it off")
        return value == "0"

    def replace(self, targets: Iterable[Target], watched: Iterable[Target] = ()) -> None:
        """Let `serve` handle the calls of functions, in every module that refers to one.

        A function that does not exist, or has other first parameters, is left alone.

        Args:
            targets: the functions.
            watched: functions that stay the package's own. `serve` describes a call of one, and
                every such message is logged once.
        """
        added: dict[_Key, _Patch] = {}
        for target in targets:
            self._idle.discard(_key(target))
            if (original := self._original(target)) is not None:
                replacement = self._replacement(target, original)
                added[_key(target)] = _Patch(original, replacement, serves=True)
        for target in watched:
            self._idle.discard(_key(target))
            if (original := self._original(target)) is not None:
                replacement = self._watching(target, original)
                added[_key(target)] = _Patch(original, replacement, serves=False)
        _rebind([(key, patch.original, patch.replacement) for key, patch in added.items()])
        self._patches |= added

    def hook(self, target: Target, register: Callable[[str, Function], object]) -> bool:
        """Like `replace`, but calls `register` with the function's full name and replacement."""
        self._idle.discard(_key(target))
        original = self._original(target)
        if original is None:
            return False
        register(_full_name(target), self._replacement(target, original))
        self._patches[_key(target)] = None
        return True

    def restore(self, names: Collection[str] | None = None) -> list[str]:
        """Restore the originals of these names, such as "Class.method", or all and stay inactive.

        Hooks, and replacements that another package has wrapped, stay and forward every call.

        Returns:
            The full names of all functions that Tessera served.
        """
        served = self.served or []
        if names is None:
            self.active = False
        else:
            self._idle |= {key for key in self._patches if key[1] in names}
        removed = {
            key: patch
            for key, patch in self._patches.items()
            if patch is not None and (names is None or key[1] in names)
        }
        _rebind([(key, patch.replacement, patch.original) for key, patch in removed.items()])
        for key in removed:
            del self._patches[key]
        return served

    def _is_on(self, key: _Key) -> bool:
        return self.active and key not in self._idle

    def _watching(self, target: Target, original: Function) -> Function:
        key, describe = _key(target), target.serve

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if self._is_on(key):
                try:
                    self._log_once(logging.INFO, describe(*args, **kwargs))
                except Exception as error:  # what is only described must not fail
                    message = f"{_full_name(target)} cannot be described: {error!r}"
                    self._log_once(logging.WARNING, message)
            return result

        return watched

    def _replacement(self, target: Target, original: Function) -> Function:
        from torch.compiler import is_compiling

        key, serve = _key(target), target.serve

        @functools.wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            # torch.compile can trace a package's own op, but not Tessera's library.
            if not is_compiling() and self._is_on(key):
                try:
                    return serve(*args, **kwargs)
                except InvalidRoutingError:
                    raise  # not a refusal: the call has run, and the original must not get bad ids
                except LeftToOriginalError:
                    pass
                except REFUSALS as refusal:
                    message = f"{_full_name(target)} gets a call that Tessera refuses: {refusal}"
                    self._log_once(logging.WARNING, message)
            return original(*args, **kwargs)

        return replacement

    def _original(self, target: Target) -> Function | None:
        """The function, if it has the expected parameters and is not served yet."""
        if _key(target) in self._patches:
            return None
        function: Function | None = getattr(*_place(target.module, target.name), None)
        names = [] if function is None else list(inspect.signature(function).parameters)
        if names[: len(target.parameters)] != list(target.parameters):
            expected, got = ", ".join(target.parameters), ", ".join(names) or "no such function"
            message = f"{_full_name(target)} is left alone: expected ({expected}), got ({got})"
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


def _place(module: ModuleType | None, name: str) -> tuple[Any, str]:
    """Where a name such as "function" or "Class.method" is: the owner, and its attribute."""
    owner, _, attribute = name.rpartition(".")
    return (getattr(module, owner, None) if owner else module), attribute


def _key(target: Target) -> _Key:
    return target.module.__name__, target.name


def _full_name(target: Target) -> str:
    return ".".join(_key(target))


def _rebind(changes: Sequence[tuple[_Key, Function, Function]]) -> None:
    """Replace functions by others, given their module, name, old and new one.

    A function is replaced in every module, under whatever name; a method in its class, unless
    another package has replaced it there.
    """
    new_of: dict[int, Function] = {}
    for (path, name), old, new in changes:
        if "." not in name:
            new_of[id(old)] = new
            continue
        owner, attribute = _place(sys.modules.get(path), name)
        if owner is not None and vars(owner).get(attribute) is old:
            setattr(owner, attribute, new)
    if not new_of:
        return
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                if (replacement := new_of.get(id(value))) is not None:
                    setattr(module, name, replacement)
