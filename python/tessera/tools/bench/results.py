"""Files of results: JSON with one line per field, and one per element of a list.

A new measurement of one shape then changes one line.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def results_text(document: Mapping[str, Any]) -> str:
    """A document as JSON; rows are the elements of its lists."""
    fields = ",\n".join(f"{json.dumps(key)}: {_field(value)}" for key, value in document.items())
    return f"{{\n{fields}\n}}\n"


def _field(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value)
    rows = ",\n".join(map(json.dumps, value))
    return f"[\n{rows}\n]"


def write_results(path: Path, document: Mapping[str, Any]) -> None:
    """Write a file of results, and its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(results_text(document))


def command_text(arguments: Iterable[str]) -> str:
    """The command line of a measurement, as for a shell; absolute paths lose their folders."""

    def shown(argument: str) -> str:
        option, equals, path = argument.partition("=")
        if not option.startswith("-"):
            option, equals, path = "", "", argument
        return option + equals + (Path(path).name if path.startswith("/") else path)

    return shlex.join(["tessera", *map(shown, arguments)])
