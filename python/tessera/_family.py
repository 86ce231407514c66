"""How every op of the family but `align_block_size`, whose way is shorter, runs from Python."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tessera._frameworks import FRAMEWORKS, exportable, read_only
from tessera._library import load, refusal
from tessera.align_block_size import AlignedBlocks, require_triple


@dataclass(frozen=True)
class Op:
    """An op, and the names of its inputs in the order of the FFI.

    The FFI has it twice: by its name, and with the suffix `_joined` for outputs in one array.
    """

    name: str
    arrays: tuple[str, ...]
    optional_arrays: tuple[str, ...]
    integers: tuple[str, ...]

    @functools.cached_property
    def function(self) -> Any:
        """Writes to the caller's outputs."""
        return load().function(self.name)

    @functools.cached_property
    def joined_function(self) -> Any:
        """Writes to parts of one array."""
        return load().function(f"{self.name}_joined")


def aligned_blocks(
    op: Op,
    arrays: Sequence[Any],
    integers: Sequence[Any],
    row_sizes: Callable[[int], tuple[int, int]],
    out: tuple[Any, ...] | None,
    num_rows: int | None = None,
) -> Any:
    """Call an op, and let it write to `out`, or to parts of one allocation.

    Args:
        op: the op.
        arrays: as it names them, optional ones that are not given None. The first decides about
            framework and device.
        integers: as it names them.
        row_sizes: from the elements of the first array, the lengths of a row of `sorted_token_ids`
            and of `expert_ids`.
        out: the outputs to write to, or None.
        num_rows: rows of the outputs; None where they have one axis.

    Raises:
        As the op that is called.
    """
    source = arrays[0]
    try:
        framework = FRAMEWORKS[type(source)]
        if out is None:
            row_slots, row_blocks = row_sizes(framework.num_elements(source))
            rows = 1 if num_rows is None else num_rows
            num_slots, num_blocks = rows * row_slots, rows * row_blocks
            memory = framework.empty_int32(source, num_slots + num_blocks + rows)
            align = op.joined_function
            outputs: tuple[Any, ...] = (memory, num_slots, num_blocks)
        else:
            require_triple(op.name, out)
            if refused := read_only(op.name, dict(zip(AlignedBlocks._fields, out, strict=True))):
                raise refused
            align = op.function
            outputs = out
        arguments = (*map(exportable, arrays), *outputs, *integers)
        if framework.launch is None:
            align(*arguments)
        else:
            framework.launch(source, lambda: align(*arguments))
    except Exception as error:
        named = zip((*op.arrays, *op.optional_arrays), arrays, strict=True)
        given = {name: a for name, a in named if a is not None or name in op.arrays}
        if isinstance(out, tuple):
            given |= zip(AlignedBlocks._fields, out, strict=False)
        named_integers = dict(zip(op.integers, integers, strict=True))
        raise refusal(op.name, error, given, named_integers) from None
    if out is not None:
        return out
    parts = framework.split(memory, num_slots, num_blocks)
    if num_rows is not None:
        slots, blocks, totals = parts
        parts = [slots.reshape((rows, row_slots)), blocks.reshape((rows, row_blocks)), totals]
    if framework.adopt is not None:
        parts = [framework.adopt(source, part) for part in parts]
    return AlignedBlocks(*parts)
