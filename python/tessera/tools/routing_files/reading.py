"""What a format makes of a file: rows of ids, layer by layer, or loads without tokens."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import MAX_EXPERTS, MAX_LAYERS, MAX_TOP_K, LayerKey, repeats_an_id
from tessera.tools.routing_files.kinds import MAX_LOAD, OR_LOADS
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.source import File

NO_EXPERT = -1
# Stands for ids outside the experts of a file that gives their number, whatever they are.
OUTSIDE = 2**31 - 1

# What a broken file raises while it is unpacked.
BROKEN = (zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError, RuntimeError)


@dataclass
class Excluded:
    """What of a layer is no routing.

    num_unrecorded: rows of zeros, which no router chose.
    num_empty: rows without any expert.
    num_unused: slots without an expert in other rows.
    num_rows: all rows.
    """

    num_unrecorded: int = 0
    num_empty: int = 0
    num_unused: int = 0
    num_rows: int = 0


@dataclass
class Loads:
    """The number of ids of each expert, layer by layer, of a file that holds no tokens.

    layers: int64 [experts] each.

    Raises:
        ValueError: there are too many layers or experts, or the loads of a layer add up to
            `MAX_LOAD` or more.
    """

    name: str
    form: str
    layers: dict[LayerKey, npt.NDArray[np.int64]]
    num_lines: int
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.layers)
        if count > MAX_LAYERS:
            raise ValueError(
                f"{self.name}: expected loads of at most {MAX_LAYERS} layers, got {count}"
            )
        most = max(map(len, self.layers.values()), default=0)
        if most > MAX_EXPERTS:
            raise ValueError(f"{self.name}: expected at most {MAX_EXPERTS} experts, got {most}")
        for layer, counts in self.layers.items():
            if counts.sum(dtype=np.float64) >= MAX_LOAD:
                where = "" if layer is None else f"{layer_name(layer)}: "
                raise ValueError(
                    f"{self.name}: {where}expected loads that add up to less than {MAX_LOAD}, got "
                    "more"
                )


class Rows:
    """Streams the ids of a file: memory use does not depend on its length.

    The attributes are complete when `pieces` has ended, `model_id` and `num_experts` when it has
    yielded its first piece.

    name: stands for the file in messages.
    form: the name of the format.
    model_id, num_experts: None if the file does not give it.
    expert_map: of the experts, None if the file has none.
    num_lines: lines or rows read.
    num_skipped, skipped: lines skipped, and the messages of the first of them.
    notes: sentences about how the file was read.
    excluded: by layer.
    least_top_k: by layer, ids of the row with the fewest, where rows differ.
    """

    form = ""
    # What a row without any expert is in the file.
    without_experts = "-1, which is no expert"
    # Rows that name an expert twice have been refused already.
    is_checked = False
    # Whether the numbers may be loads of experts, as far as the file says.
    may_be_loads = False
    # Whether a layer's rows come in the order of time, as far as the file has one.
    in_order = True

    def __init__(self, file: File, options: Options) -> None:
        self.file = file
        self.options = options
        self.name = file.name
        self.model_id: str | None = None
        self.num_experts: int | None = None
        self.expert_map: npt.NDArray[Any] | None = None
        self.num_lines = 0
        self.num_skipped = 0
        self.skipped: list[str] = []
        self.notes: list[str] = []
        self.excluded: dict[LayerKey, Excluded] = {}
        self.least_top_k: dict[LayerKey, int] = {}
        self._read_layers: set[LayerKey] = set()
        self._largest_stored = 0
        self._num_ids = 0
        self._num_outside = 0

    @property
    def _or_loads(self) -> str:
        return OR_LOADS if self.may_be_loads else ""

    @property
    def known_experts(self) -> int | None:
        """The number of experts, from the caller or else from the file."""
        given = self.options.num_experts
        return self.num_experts if given is None else given

    def read(self) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
        """A layer and its next ids as they are stored, [tokens, top_k]; for subclasses."""
        raise NotImplementedError

    def place(self, layer: LayerKey, row: int) -> str:
        """Where a row is, counted from the layer's first; for messages."""
        return f"{self.name}: {'' if layer is None else f'layer {layer}: '}row {row}"

    def num_padding(self, layer: LayerKey) -> int:
        """Slots that a layer's rows do not have, since they are shorter than others."""
        return 0

    def pieces(self) -> Iterator[tuple[LayerKey, npt.NDArray[np.int32]]]:
        """A layer (None if the file does not name it) and its next ids, [tokens, top_k].

        Ids are those of experts, -1 for none, or `OUTSIDE`. May be called once.

        Raises:
            ValueError: the file is broken, or holds what is no routing; the message has the place.
        """
        try:
            for layer, ids in self.read():
                self._read_layers.add(layer)
                if len(self._read_layers) > MAX_LAYERS:
                    raise ValueError(
                        f"{self.name}: layers: expected at most {MAX_LAYERS}, got more"
                    )
                if self.options.zero_experts and self.known_experts is None:
                    raise ValueError(
                        f"{self.name}: --zero-experts: expected --experts beside it, since the "
                        "file does not give their number"
                    )
                if not is_chosen(layer, self.options):
                    continue
                cleaned = self._clean(layer, ids)
                if len(cleaned):
                    yield layer, cleaned
        except BROKEN as error:
            raise ValueError(f"{self.name}: expected a whole file ({error})") from None
        except OSError as error:
            raise ValueError(f"{self.name}: {error.strerror or error}") from None
        self._end()

    def _end(self) -> None:
        require_chosen(self.name, self._read_layers, self.options)
        for layer, excluded in self.excluded.items():
            excluded.num_unused -= self.num_padding(layer)
        routed = [
            one
            for one in self.excluded.values()
            if one.num_unrecorded + one.num_empty < one.num_rows
        ]
        if not routed:
            what = "zeros, as of a dense layer or of tokens that were not recorded"
            if not any(one.num_unrecorded for one in self.excluded.values()):
                what = self.without_experts
            raise ValueError(f"{self.name}: no routing: every row is {what}")
        # A few are faults of a recording; so many, a wrong number or no ids.
        if 2 * self._num_outside >= self._num_ids:
            raise ValueError(
                f"{self.name}: topk_ids: expected ids in [0, {self.known_experts}), got "
                f"{self._num_outside:,} of {self._num_ids:,} outside: the number of experts is too "
                f"small, or these are no ids{self._or_loads}"
            )
        for layer, one in self.excluded.items():
            if one.num_unrecorded + one.num_empty == one.num_rows:
                self.notes.append(
                    f"layer {layer}: left out: every row is zeros or without an expert, as of a "
                    "dense layer"
                )

    def _clean(self, layer: LayerKey, ids: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        if not 1 <= ids.shape[1] <= MAX_TOP_K:
            raise ValueError(
                f"{self.name}: top_k: expected 1 to {MAX_TOP_K} ids for each token, got "
                f"{ids.shape[1]}"
            )
        excluded = self.excluded.setdefault(layer, Excluded())
        first_row = excluded.num_rows
        excluded.num_rows += len(ids)
        rows = np.arange(first_row, first_row + len(ids))
        cleaned = self._ids(layer, ids, rows)
        if ids.shape[1] > 1:
            recorded = cleaned.any(axis=1)
            if not recorded.all():
                excluded.num_unrecorded += len(cleaned) - int(np.count_nonzero(recorded))
                cleaned, rows = cleaned[recorded], rows[recorded]
        used = cleaned != NO_EXPERT
        if not used.all():
            routed = used.any(axis=1)
            excluded.num_empty += len(cleaned) - int(np.count_nonzero(routed))
            cleaned, rows = cleaned[routed], rows[routed]
            excluded.num_unused += int(np.count_nonzero(cleaned == NO_EXPERT))
        self._check(layer, cleaned, rows, ids[rows - first_row])
        self._num_ids += int(np.count_nonzero(cleaned != NO_EXPERT))
        self._num_outside += int(np.count_nonzero(cleaned == OUTSIDE))
        return cleaned

    def _ids(
        self, layer: LayerKey, ids: npt.NDArray[Any], rows: npt.NDArray[Any]
    ) -> npt.NDArray[np.int32]:
        """The ids as int32."""
        if ids.dtype == np.int32 and self.is_checked:
            return ids
        known = self.known_experts
        wide = ids.astype(np.int64)
        if ids.dtype == np.uint64:
            wide[ids > np.iinfo(np.int64).max] = OUTSIDE
        if ids.dtype.kind == "u":
            wide[self._is_minus_one(layer, ids)] = NO_EXPERT
        if (wide < NO_EXPERT).any():
            row, slot = np.argwhere(wide < NO_EXPERT)[0]
            raise ValueError(
                f"{self.place(layer, int(rows[row]))}: topk_ids: expected ids of experts, or "
                f"{NO_EXPERT} for none, got {ids[row, slot]}"
            )
        limit = MAX_EXPERTS if known is None else known
        bad = wide >= limit
        if bad.any():
            if self.options.zero_experts and known is not None:
                wide[wide >= limit] = NO_EXPERT
            elif known is None:
                row, slot = np.argwhere(bad)[0]
                raise ValueError(
                    f"{self.place(layer, int(rows[row]))}: topk_ids: expected ids below "
                    f"{MAX_EXPERTS}, got {ids[row, slot]}: give --experts for larger ids to be "
                    f"left out{self._or_loads}"
                )
            else:
                wide[bad] = OUTSIDE
        return wide.astype(np.int32)

    def _is_minus_one(self, layer: LayerKey, ids: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which ids are -1 that was stored unsigned, such as 255 or 65535."""
        most = np.iinfo(ids.dtype).max
        stored = ids == most
        if (self.known_experts or 0) > most:
            return np.zeros_like(stored)
        if not stored.any():
            self._largest_stored = max(self._largest_stored, int(ids.max(initial=0)))
            return np.zeros_like(stored)
        # In a model of 256 experts 255 is an expert, but never twice in a row.
        if self.known_experts is None and (stored.sum(axis=1) < 2).any():
            others = ids[~stored]
            self._largest_stored = max(self._largest_stored, int(others.max(initial=0)))
            if self._largest_stored >= most // 2:
                stored = stored & (stored.sum(axis=1) > 1)[:, None]
        found: npt.NDArray[np.bool_] = stored
        note = f"{most} is read as -1, no expert, which was stored as {ids.dtype}"
        if stored.any() and note not in self.notes:
            self.notes.append(note)
        return found

    def _check(
        self,
        layer: LayerKey,
        ids: npt.NDArray[np.int32],
        rows: npt.NDArray[Any],
        stored: npt.NDArray[Any],
    ) -> None:
        """Refuse wrong ids; `rows` are their places, and `stored` what the file has there."""
        known = self.known_experts
        if not self.is_checked:
            repeated = repeats_an_id(ids)
            if repeated.any():
                place = int(np.flatnonzero(repeated)[0])
                raise ValueError(
                    f"{self.place(layer, int(rows[place]))}: topk_ids: expected different experts, "
                    f"got {shortened(stored[place])}{self._or_loads}"
                )
        if known is not None and ids.shape[1] > known:
            most = int((ids != NO_EXPERT).sum(axis=1).max(initial=0))
            if most > known:
                raise ValueError(
                    f"{self.name}: topk_ids: expected at most as many ids for each token as "
                    f"experts, {known}, got {most}"
                )


def largest_id(ids: npt.NDArray[np.int32]) -> int:
    """The largest id of an expert, -1 if there is none."""
    return int(ids.max(initial=NO_EXPERT, where=ids != OUTSIDE))


def layer_name(layer: LayerKey, separator: str = " ") -> str:
    """A layer in words: "layer 3", or the name that the file gives it."""
    return layer if isinstance(layer, str) else f"layer{separator}{layer}"


def shortened(ids: npt.NDArray[Any]) -> list[int]:
    """An array's first elements, for a message."""
    found: list[int] = ids.reshape(-1)[:12].tolist()
    return found


def is_chosen(layer: LayerKey, options: Options) -> bool:
    """Whether `--layer` names the layer."""
    return not options.layers or str(layer) in options.layers


def require_chosen(name: str, layers: set[LayerKey], options: Options) -> None:
    """Refuse names of `--layer` that no layer has.

    Raises:
        ValueError: there is no such layer.
    """
    known = {str(layer) for layer in layers}
    for wanted in options.layers:
        if wanted not in known:
            numbered = sorted(layers, key=lambda one: (isinstance(one, str), str(one).zfill(9)))
            listed = ", ".join(map(str, numbered[:20])) + (" ..." if len(numbered) > 20 else "")
            if layers == {None}:
                listed = "no --layer, since the file names no layers"
            raise ValueError(f"{name}: --layer: expected some of {listed}, got {wanted}")
