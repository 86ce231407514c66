"""The files that hold routing, in the forms that engines and frameworks write.

A form is a module of this package with the members of `Format`, and a place in `FORMATS`.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Protocol

from tessera.routing_log import Progress
from tessera.tools.routing_files import (
    csv_table,
    ids_array,
    json_loads,
    json_log,
    loads_array,
    packed_ids,
    parquet_table,
    responses,
    router_logits,
    routing_map,
    sglang_recorder,
)
from tessera.tools.routing_files.arrays import arrays_of, tables_of
from tessera.tools.routing_files.options import AXES, PHASES, Options
from tessera.tools.routing_files.reading import BROKEN, Loads, Rows, largest_id, layer_name
from tessera.tools.routing_files.source import STANDARD_INPUT, File

__all__ = [
    "AXES",
    "FORMATS",
    "PHASES",
    "STANDARD_INPUT",
    "Loads",
    "Options",
    "Rows",
    "largest_id",
    "layer_name",
    "open_routing",
]


class Format(Protocol):
    """A form of files.

    NAME: of the form, in the list that answers a file in none of them.
    OPTIONS: those of `Options` that change how its files are read, besides the number of experts
        and the layers.
    """

    NAME: str
    OPTIONS: tuple[str, ...]

    def recognise(self, file: File) -> int:
        """How sure it is, in percent, that the file has this form."""
        ...

    def read(self, file: File, options: Options) -> Rows | Loads:
        """What a file of this form holds."""
        ...


FORMATS: tuple[Format, ...] = (
    json_log,
    responses,
    ids_array,
    sglang_recorder,
    routing_map,
    router_logits,
    packed_ids,
    loads_array,
    json_loads,
    csv_table,
    parquet_table,
)


def open_routing(path: Path, options: Options, progress: Progress | None = None) -> Rows | Loads:
    """Recognise a file by its content. What is found in it streams when it is asked for.

    Args:
        path: the file, or `STANDARD_INPUT`.
        options: how to read what the content leaves open.
        progress: called now and then with the number of bytes read since the last call.

    Raises:
        ValueError: there is no such file, it is in none of the `FORMATS`, or needs an option.
    """
    file = File(path, progress)
    try:
        if not file.head:
            raise ValueError(f"{file.name}: expected a routing log, got an empty file")
        if options.loads and loads_array.may_be_told(file):
            _refuse_unused(file, loads_array, options)
            return loads_array.read(file, options)
        sure = [one.recognise(file) for one in FORMATS]
        best = max(sure)
        if not best:
            raise ValueError(_unknown(file))
        form = FORMATS[sure.index(best)]
        _refuse_unused(file, form, options)
        return form.read(file, options)
    except OSError as error:
        raise ValueError(f"{file.name}: {error.strerror or error}") from None
    except BROKEN as error:
        raise ValueError(f"{file.name}: expected a whole file ({error})") from None


def _refuse_unused(file: File, form: Format, options: Options) -> None:
    for field in fields(options):
        is_given = getattr(options, field.name) != field.default
        if is_given and field.name not in (*form.OPTIONS, "num_experts", "layers"):
            option = field.name.replace("_", "-")
            raise ValueError(f"{file.name}: --{option}: does nothing to {form.NAME}")
    if options.axes is not None and all(len(one.shape) < 3 for one in tables_of(file).values()):
        raise ValueError(f"{file.name}: --axes: does nothing to arrays of less than three axes")


def _unknown(file: File) -> str:
    listed = "; ".join(one.NAME for one in FORMATS)
    return f"{file.name}: expected one of these forms, got {_guess(file)}: {listed}"


def _guess(file: File) -> str:
    """What a file in no known form seems to be."""
    head = file.head
    if head.startswith(b"\x93NUMPY") and b"'|O'" in head[:128]:
        return "an array of Python objects, which only unpickling would read, and that may run code"
    if head.startswith(b"\x93NUMPY"):
        (array,) = arrays_of(file).values()
        return f"an array of {array.dtype} of shape {list(array.shape)}"
    if head.startswith(b"PK\3\4"):
        return "a zip archive without arrays of ids"
    if head.startswith(b"\x1f\x8b"):
        return "gzip within gzip, of which one is unpacked"
    if head.startswith(b"\x80"):
        return "a pickle, which is not read since it may run code"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return "JSON without topk_ids or another key of a routing log"
    if b"\0" not in head and b"\r" in head and b"\n" not in head:
        return "text whose lines end with CR instead of LF"
    if b"\0" not in head and b"," in head.split(b"\n")[0]:
        return "text with commas, in whose first line neither a column expert nor numbers are found"
    if head.split(b"\n")[0].strip().isdigit():
        return "a number in a line, which is no table (the loads of a layer go into one line)"
    kind = {".npy": "not as an .npy begins", ".npz": "not as an .npz begins"}
    return f"content that begins with {head[:8]!r}, {kind.get(file.suffix, 'which none has')}"
