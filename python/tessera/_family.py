"""How every op of the family but `align_block_size`, whose way is shorter, runs from Python."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tessera._arrays import UNFIT, any_unfit, refused_array, require_eager
from tessera._frameworks import FRAMEWORKS, exportable
from tessera._library import load, refusal
from tessera._outputs import AlignedBlocks, Layout, require_triple


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
    def array_names(self) -> tuple[str, ...]:
        """Of all inputs."""
        return *self.arrays, *self.optional_arrays

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
    layout_for: Callable[[int], Layout],
    out: tuple[Any, ...] | None,
    num_rows: int | None = None,
) -> Any:
    """Call an op, and let it write to `out`, or to parts of one allocation.

    Args:
        op: the op.
        arrays: as it names them, optional ones that are not given None. The first decides about
            framework and device.
        integers: as it names them.
        layout_for: from the number of elements of the first array, the layout of the outputs.
        out: the outputs to write to, or None.
        num_rows: rows of the outputs; None where they have one axis.

    Raises:
        As the op that is called.
    """
    source = arrays[0]
    try:
        framework = FRAMEWORKS[type(source)]
        if out is not None:
            require_triple(op.name, out)
        if any_unfit(arrays) or (out is not None and any_unfit(out, written=True)):
            raise TypeError(UNFIT)
        require_eager(op.name, zip(op.array_names, arrays, strict=True))
        if out is not None:
            require_eager(op.name, zip(AlignedBlocks._fields, out, strict=True))
        if out is None:
            layout = layout_for(framework.num_elements(source))
            memory = framework.empty_int32(source, layout.length)
            align = op.joined_function
            outputs: tuple[Any, ...] = (memory, layout.num_slots, layout.num_blocks)
        else:
            align = op.function
            outputs = out
        arguments = (*map(exportable, arrays), *outputs, *integers)
        if framework.launch is None:
            align(*arguments)
        else:
            framework.launch(source, lambda: align(*arguments))
    except Exception as error:
        named = zip(op.array_names, arrays, strict=True)
        given = {name: a for name, a in named if a is not None or name in op.arrays}
        written = dict(
            zip(AlignedBlocks._fields, out if isinstance(out, tuple) else (), strict=False)
        )
        given |= written
        named_integers = dict(zip(op.integers, integers, strict=True))
        # No variable of this frame may hold it: its traceback holds the frame, and so the arrays.
        raise refusal(
            op.name, refused_array(op.name, given, written) or error, given, named_integers
        ) from None
    if out is not None:
        return out
    parts = framework.split(memory, layout)
    if num_rows is not None:
        num_rows = int(num_rows)  # a bool is a number to the library, and none to reshape
        slots, blocks, totals = parts
        slots = slots.reshape((num_rows, layout.num_slots // num_rows))
        parts = [slots, blocks.reshape((num_rows, layout.num_blocks // num_rows)), totals]
    if framework.adopt is not None:
        parts = [framework.adopt(source, part) for part in parts]
    return AlignedBlocks(*parts)
