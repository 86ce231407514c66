"""Finds the function that `--impl module:function` names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


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
        raise ValueError(
            f"--impl: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise ValueError(f"--impl: {module_name} has no {path}")
        found = getattr(found, attribute)
    if not callable(found):
        kind = type(found).__name__
        raise ValueError(f"--impl: expected {name} to be a function, got {kind}")
    function: Callable[..., Any] = found
    return function
