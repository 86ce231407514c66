"""Several files as one: ranks that recorded different tokens, or layers of a file each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey, Progress, widened
from tessera.tools.printable import printable
from tessera.tools.routing_files import STANDARD_INPUT, open_routing
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import Excluded, Loads, Rows, layer_name

RANKS, LAYERS = "ranks", "layers"
# None of these: every file is a model of its own, unless its log names the same model as another.
TOGETHER = (RANKS, LAYERS)


def open_several(
    paths: Sequence[Path], options: Options, how: str | None, progress: Progress | None = None
) -> list[Rows | Loads]:
    """Recognise files by their content: one for each, or one for all of them.

    Args:
        paths: at least one.
        options: how to read them.
        how: None, or `RANKS`, whose layers of the same name are one, file after file; or `LAYERS`,
            a layer each. Loads of ranks are added up.
        progress: called now and then with the number of bytes read since the last call.

    Raises:
        ValueError: a file cannot be read, or holds loads, where another one holds tokens.
    """
    opened = [open_routing(path, options, progress) for path in paths]
    if how is None:
        return opened
    rows = [one for one in opened if isinstance(one, Rows)]
    loads = [one for one in opened if isinstance(one, Loads)]
    if not rows:
        return [_joined_loads(loads, _stems(paths), how)]
    if loads:
        raise ValueError(f"{loads[0].name}: --files {how}: expected ids of tokens, got loads")
    return [_Joined(rows, how, options)]


def file_names(paths: Sequence[Path]) -> list[str]:
    """Names of files for tables: with as many of their folders as tell them apart."""
    return [
        "standard input" if path == STANDARD_INPUT else _shortest(path, paths) for path in paths
    ]


def layer_names(
    paths: Sequence[Path], how: str | None, layers: Sequence[tuple[int, LayerKey]]
) -> list[str]:
    """A name for each layer, as short as possible: that of its file, and its own if needed.

    They are for tables, and printable.

    Args:
        paths: the files.
        how: as in `open_several`.
        layers: the number of the file, among those that `open_several` returns, and the layer.
    """
    if how == LAYERS:  # which are named by their files
        return [printable(str(layer)) for _, layer in layers]
    stems = _stems(paths) if how is None else [and_more(_stems(paths))]
    layers_of_file = Counter(file for file, _ in layers)
    return [
        printable(stems[file] + (f" {layer_name(layer)}" if layers_of_file[file] > 1 else ""))
        for file, layer in layers
    ]


def _is_descriptor(path: Path) -> bool:
    """Whether only the whole path is a name, such as the shell's /dev/fd/63 for a pipe."""
    return path.is_relative_to("/dev")


def _shortest(path: Path, paths: Sequence[Path]) -> str:
    if _is_descriptor(path):
        return str(path)
    for length in range(1, len(path.parts)):
        if sum(other.parts[-length:] == path.parts[-length:] for other in paths) == 1:
            return "/".join(path.parts[-length:])
    return str(path)


class _Joined(Rows):
    def __init__(self, files: Sequence[Rows], how: str, options: Options) -> None:
        super().__init__(files[0].file, options)
        names = [one.name for one in files]
        self.name = and_more(names)
        self.in_order = how == LAYERS or len(files) == 1
        if len(files) > 1:
            order = "" if self.in_order else ", file after file, so without drift over time"
            self.notes.append(f"{how} of one model{order}: {', '.join(names)}")
        self._stems = dict(zip(files, _stems([one.file.path for one in files]), strict=True))
        self.form = files[0].form
        self._files = files
        self._how = how
        self._top_k: dict[LayerKey, int] = {}
        # 0 for layers whose rows differ in length.
        self._fixed_top_k: dict[LayerKey, int] = {}

    def pieces(self) -> Iterator[tuple[LayerKey, npt.NDArray[np.int32]]]:
        for number, rows in enumerate(self._files):
            top_k: dict[LayerKey, int] = {}
            for layer, ids in rows.pieces():
                self._agree(rows, is_first=number == 0)
                name, top_k[layer] = self._named(rows, layer), ids.shape[1]
                ids = widened(ids, self._top_k.get(name, 0))
                self._top_k[name] = ids.shape[1]
                yield name, ids
            for layer, most in top_k.items():
                self._take_top_k(rows, layer, most)
            self._take(rows)

    def _take_top_k(self, rows: Rows, layer: LayerKey, most: int) -> None:
        name, least = self._named(rows, layer), rows.least_top_k.get(layer, most)
        fixed = self._fixed_top_k.setdefault(name, most)
        if least < most:
            self._fixed_top_k[name] = 0
        elif fixed not in (0, most):
            raise ValueError(
                f"{rows.name}: --files {self._how}: expected {fixed} ids for each token, as "
                f"before, got {most}"
            )
        self.least_top_k[name] = min(least, self.least_top_k.get(name, least))

    def _named(self, rows: Rows, layer: LayerKey) -> LayerKey:
        if self._how == RANKS:
            return layer
        return _in_file(self._stems[rows], layer)

    def _agree(self, rows: Rows, *, is_first: bool) -> None:
        if is_first:
            self.model_id, self.num_experts = rows.model_id, rows.num_experts
        elif rows.num_experts != self.num_experts or rows.model_id != self.model_id:
            raise ValueError(
                f"{rows.name}: --files {self._how}: expected the model and number of experts of "
                f"{self._files[0].name}, {self.model_id} and {self.num_experts}, got "
                f"{rows.model_id} and {rows.num_experts}"
            )

    def _take(self, rows: Rows) -> None:
        self.num_lines += rows.num_lines
        self.num_skipped += rows.num_skipped
        self.skipped += rows.skipped
        self.notes += [note for note in rows.notes if note not in self.notes]
        for layer, excluded in rows.excluded.items():
            one = self.excluded.setdefault(self._named(rows, layer), Excluded())
            one.num_unrecorded += excluded.num_unrecorded
            one.num_empty += excluded.num_empty
            one.num_unused += excluded.num_unused
            one.num_rows += excluded.num_rows


def _joined_loads(files: Sequence[Loads], stems: Sequence[str], how: str) -> Loads:
    names = [one.name for one in files]
    layers: dict[LayerKey, npt.NDArray[np.int64]] = {}
    for one, stem in zip(files, stems, strict=True):
        for layer, counts in one.layers.items():
            name = layer if how == RANKS else _in_file(stem, layer)
            before = layers.setdefault(name, np.zeros_like(counts))
            if len(before) != len(counts):
                raise ValueError(
                    f"{one.name}: --files {how}: expected the loads of {len(before)} experts, as "
                    f"before, got {len(counts)}"
                )
            layers[name] = before + counts
    notes = [note for one in files for note in one.notes]
    if len(files) > 1:
        notes.insert(0, f"{how} of one model: {', '.join(names)}")
    num_lines = sum(one.num_lines for one in files)
    return Loads(and_more(names), files[0].form, layers, num_lines, list(dict.fromkeys(notes)))


def and_more(names: Sequence[str]) -> str:
    """Stands for all files in one name."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _in_file(stem: str, layer: LayerKey) -> str:
    return stem if layer is None else f"{stem} layer {layer}"


def _stems(paths: Sequence[Path]) -> list[str]:
    """Names of files without suffixes, and with folders where only these tell them apart."""
    plain = [path.with_suffix("") if path.suffix.lower() == ".gz" else path for path in paths]
    stems = [
        "standard input"
        if path == STANDARD_INPUT
        else str(path)
        if _is_descriptor(path)
        else path.stem
        for path in plain
    ]
    return [
        stem if stems.count(stem) == 1 else str(path)
        for path, stem in zip(paths, stems, strict=True)
    ]
