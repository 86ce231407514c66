"""Tables as text: loads, ids, or a row for each expert of a layer."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera._routing_lines import layer_key
from tessera.routing_log import (
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_LINE_BYTES,
    LayerKey,
    bounded_lines,
)
from tessera.tools.routing_files.kinds import MAX_LOAD, kind_of, loads_note, may_hold_loads
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import Loads, Rows
from tessera.tools.routing_files.source import File

NAME = (
    "tables as CSV: a row for each layer and expert, with columns expert and, if known, layer and "
    "count; or numbers alone, loads [layers, experts] or ids [tokens, top_k]"
)
OPTIONS: tuple[str, ...] = ("loads", "zero_experts")
_DELIMITERS = (",", "\t", ";")
_EXPERT = ("expert", "expert_id", "expert_idx")
_LAYER = ("layer", "layer_id", "layer_idx")
_COUNT = ("count", "counts", "load", "tokens", "num_tokens")
_NAMES = "the numbers of columns as pandas writes them: 0, 1 ..."
_SAMPLE_ROWS = 4096
_PIECE_ROWS = 1 << 13


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    if b"\0" in file.head or file.head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return 0
    names = _header(file)
    if any(name in _EXPERT for name in names):
        return 80
    is_table = len(names) > 1 and all(_is_number(name) for name in names[1:])
    return 60 if is_table else 0


def read(file: File, options: Options) -> Rows | Loads:
    """What a file of this form holds.

    Raises:
        ValueError: a row is wrong, or the numbers are neither ids nor loads.
    """
    header = _header(file)
    if any(name in _EXPERT for name in header):
        return _pairs(file, header)
    sample = np.array([row for _, row in zip(range(_SAMPLE_ROWS), _numbers(file), strict=False)])
    if not len(sample):
        raise ValueError(
            f"{file.name}: expected rows of numbers, got none after the first line, {_NAMES}"
        )
    notes = [f"the first line is no row, but {_NAMES}"] if _are_names(header) else []
    if options.loads and sample.min(initial=0) < 0:
        raise ValueError(
            f"{file.name}: --loads: expected counts, integers of 0 or more, got {sample.min()}"
            "; without --loads, ids may be -1"
        )
    kind = "loads" if options.loads else kind_of(sample, sample.shape)
    if kind in ("ids", "zeros"):
        rows = _TableRows(file, options)
        rows.notes += notes
        rows.may_be_loads = may_hold_loads(sample.shape)
        if options.num_experts is None:
            note = loads_note(sample, sample.shape)
            rows.notes += [note] if note else []
        return rows
    if kind != "loads":
        raise ValueError(f"{file.name}: expected a table of ids or of loads, got another: {kind}")
    if len(sample) == _SAMPLE_ROWS:
        raise ValueError(f"{file.name}: expected loads of at most {MAX_LAYERS} layers, got more")
    return Loads(file.name, NAME, dict(enumerate(sample)), len(sample), notes)


def _header(file: File) -> list[str]:
    """The cells of the first line; none if it is no line of a table."""
    first = file.head.split(b"\n")[0].decode(errors="replace")
    try:
        return [cell.strip().lower() for cell in _cells(first)]
    except csv.Error:
        return []


def _are_names(cells: list[str]) -> bool:
    """Whether they are the names that pandas gives to columns."""
    return cells == [str(place) for place in range(len(cells))]


def _cells(line: str) -> list[str]:
    line = line.lstrip("\ufeff").rstrip("\r\n")
    delimiter = max(_DELIMITERS, key=line.count)
    return next(csv.reader([line], delimiter=delimiter), [])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _rows(file: File) -> Iterator[tuple[int, list[str]]]:
    """The numbers and cells of the lines that are not empty."""
    with file.open() as stream:
        for number, line in enumerate(bounded_lines(stream), start=1):
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{file.name}:{number}: expected a line of at most {MAX_LINE_BYTES} bytes, got "
                    "a longer one"
                )
            if not line.strip():
                continue
            try:
                yield number, _cells(line.decode("utf-8", errors="replace"))
            except csv.Error as error:
                reason = "CR within it" if b"\r" in line.rstrip(b"\r\n") else error
                raise ValueError(
                    f"{file.name}:{number}: expected a line of a table ({reason})"
                ) from None


def _whole(file: File, number: int, cell: str) -> int:
    expected = "an integer"
    try:
        value = float(cell)
        if value == int(value):
            if abs(value) < MAX_LOAD:
                return int(value)
            expected = f"an integer below {MAX_LOAD}"
        else:
            expected = "an integer (means of counts need rounding)"
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{file.name}:{number}: expected {expected}, got {cell[:40]!r}")


def _numbers(file: File) -> Iterator[list[int]]:
    """The rows of a table of numbers, without a header and pandas' index."""
    width, has_index = None, False
    for number, cells in _rows(file):
        if number == 1:
            has_index = cells[0].strip() == ""
            names = cells[1:] if has_index else cells
            if _are_names(names):
                continue
        values = [_whole(file, number, cell) for cell in cells[1 if has_index else 0 :]]
        width = width or len(values)
        if len(values) != width:
            raise ValueError(f"{file.name}:{number}: expected {width} numbers, got {len(values)}")
        yield values


def _pairs(file: File, header: list[str]) -> Loads:
    def column(names: tuple[str, ...]) -> int | None:
        return next((place for place, name in enumerate(header) if name in names), None)

    expert_at, layer_at, count_at = column(_EXPERT), column(_LAYER), column(_COUNT)
    assert expert_at is not None
    found: dict[LayerKey, dict[int, int]] = {}
    num_lines, num_rows = 0, 0
    for number, cells in _rows(file):
        num_lines = number
        if number == 1:
            continue
        if len(cells) != len(header):
            raise ValueError(
                f"{file.name}:{number}: expected {len(header)} cells, got {len(cells)}"
            )
        expert = _whole(file, number, cells[expert_at])
        count = 1 if count_at is None else _whole(file, number, cells[count_at])
        if not 0 <= expert < MAX_EXPERTS or count < 0:
            raise ValueError(
                f"{file.name}:{number}: expected an expert in [0, {MAX_EXPERTS}) and a count of 0 "
                f"or more, got {expert} and {count}"
            )
        try:
            layer = None if layer_at is None else layer_key(cells[layer_at].strip())
        except ValueError as error:
            raise ValueError(f"{file.name}:{number}: {error}") from None
        loads = found.setdefault(layer, {})
        loads[expert] = min(loads.get(expert, 0) + count, MAX_LOAD)
        num_rows += 1
        if len(found) > MAX_LAYERS:
            raise ValueError(f"{file.name}:{number}: expected at most {MAX_LAYERS} layers")
    if not found:
        raise ValueError(f"{file.name}: expected a row for each expert, got none")
    num_experts = 1 + max(max(loads) for loads in found.values())
    layers: dict[LayerKey, npt.NDArray[np.int64]] = {}
    for layer, loads in found.items():
        layers[layer] = np.zeros(num_experts, np.int64)
        layers[layer][list(loads)] = list(loads.values())
    notes = [f"the file does not give the number of experts: {num_experts} is its largest id + 1"]
    if num_rows > sum(map(len, found.values())):
        notes.append(f"the loads are sums over {num_rows} rows")
    return Loads(file.name, NAME, layers, num_lines, notes)


class _TableRows(Rows):
    form = NAME

    def read(self) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
        held: list[list[int]] = []
        for row in _numbers(self.file):
            held.append(row)
            self.num_lines += 1
            if len(held) == _PIECE_ROWS:
                yield None, np.array(held)
                held = []
        if held:
            yield None, np.array(held)
