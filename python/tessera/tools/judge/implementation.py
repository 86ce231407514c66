"""Finds the function that `--impl module:function` names."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# With more functions than these, a module is not described by all of their names.
_MOST_SHOWN = 12


def load_implementation(name: str, folder: str) -> Callable[..., Any]:
    """Import `module:function`, where the function may be an attribute of an attribute.

    Modules are first looked for in `folder`.

    Raises:
        ValueError: it cannot be imported, does not exist, or is not callable.
    """
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise ValueError(f"--impl: expected module:function, got {name!r}")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--impl: {_why(error, module_name, path, folder)}") from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise ValueError(
                f"--impl: {module_name} has no {path}{_functions_of(found, attribute)}"
            )
        found = getattr(found, attribute)
    if not callable(found):
        kind = type(found).__name__
        raise ValueError(f"--impl: expected {name} to be a function, got {kind}")
    function: Callable[..., Any] = found
    return function


def _why(error: BaseException, module_name: str, path: str, folder: str) -> str:
    """Why a module cannot be imported; of a file's name, what to write in its place."""
    if module_name.endswith(".py") or os.sep in module_name:
        file = Path(folder, module_name)
        where = file.parent.resolve()
        hint = f"give {file.stem}:{path}"
        if not file.is_file():
            hint = "there is no such file"
        elif where != Path(folder).resolve():
            hint += f" in the folder {where}"
        return f"expected a module's name, got that of a file, {module_name}: {hint}"
    why = f"{module_name} cannot be imported: {type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]:
        why += f" in {folder} or on Python's own path"
    return why


def _functions_of(thing: Any, missing: str) -> str:
    """The functions that a module has of its own; of many, those with similar names."""
    values: dict[str, Any] = getattr(thing, "__dict__", {})
    public = {
        name: value
        for name, value in values.items()
        if callable(value) and not name.startswith("_")
    }
    module = getattr(thing, "__name__", None)
    names = [name for name in public if getattr(public[name], "__module__", None) == module]
    names = names or list(public)
    shown = names if len(names) <= _MOST_SHOWN else difflib.get_close_matches(missing, names)
    if shown:
        return f"; it has {', '.join(shown)}"
    return "" if names else "; it has no function"
