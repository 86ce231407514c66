"""`torch.ops.tessera.align_block_size`: the op for compiled code. Importing this registers it.

`tessera.align_block_size` becomes this op inside `torch.compile`, which imports this by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tessera._device import HOST
from tessera._eager_align_block_size import align_eagerly, refuse_followed
from tessera._outputs import REFERENCE, AlignedBlocks, output_sizes

# Those of `tessera.align_block_size`, but `out`, and but `validate`, which has no type of a schema:
# TESSERA_VALIDATE decides. Not keyword-only, which costs an eager call more.
_ARGUMENTS = """
    Tensor topk_ids, SymInt block_size, SymInt num_experts, Tensor? expert_map=None,
    bool ignore_invalid_experts=False, bool pad_sorted_ids=False, int tail_expert=-1,
    bool map_tail=False, bool filtered_group=False, Tensor(a!)? expert_counts=None,
    Tensor(b!)? num_dropped=None, Tensor(c!)? statistics=None, int? num_threads=None
"""
_RETURNS = "(Tensor sorted_token_ids, Tensor expert_ids, Tensor num_tokens_post_pad)"
_WRITTEN = "Tensor(d!) sorted_token_ids, Tensor(e!) expert_ids, Tensor(f!) num_tokens_post_pad"

_library = torch.library.Library("tessera", "DEF")  # the ops live as long as this object
for _schema in (
    f"align_block_size({_ARGUMENTS}) -> {_RETURNS}",
    f"align_block_size.out({_ARGUMENTS}, *, {_WRITTEN}) -> ()",
):
    _library.define(_schema, tags=torch.Tag.pt2_compliant_tag)
_op = torch.ops.tessera.align_block_size

_OPTIONS = [argument.name for argument in _op.default._schema.arguments[1:]]


def _options(values: Sequence[Any]) -> dict[str, Any]:
    """Keyword arguments of a call; the dispatcher leaves out the last ones with their defaults."""
    return dict(zip(_OPTIONS, values, strict=False))


def _shape(topk_ids: torch.Tensor, options: dict[str, Any]) -> tuple[Any, Any, Any, bool, bool]:
    """What the lengths of the outputs depend on."""
    return (
        topk_ids.numel(),
        options["block_size"],
        options["num_experts"],
        options.get("pad_sorted_ids", False),
        options.get("filtered_group", False),
    )


def _core_sizes(shape: tuple[int, int, int, bool, bool]) -> tuple[int, int]:
    # Asked of the reference, which every build has, wherever the tensors are.
    return output_sizes(*shape[:4], HOST, REFERENCE, shape[4])[:2]


def symbolic_sizes(shape: tuple[Any, Any, Any, bool, bool]) -> tuple[Any, Any]:
    """Lengths of `sorted_token_ids` and `expert_ids`, where the core cannot be asked: for SymInts.

    The one formula in Python; a test holds it to the core's.
    """
    num_ids, block_size, num_experts, pad_sorted_ids, filtered_group = shape
    num_groups = num_experts + 1 if filtered_group else num_experts
    capacity = num_ids + torch.sym_min(num_ids, num_groups) * (block_size - 1)
    num_blocks = (capacity + block_size - 1) // block_size
    return (num_blocks * block_size if pad_sorted_ids else capacity), num_blocks


def _empty_outputs(
    topk_ids: torch.Tensor, num_slots: Any, num_blocks: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three tensors of their own, not parts of one: a functional op's outputs may not alias."""
    empty, int32 = topk_ids.new_empty, torch.int32
    return empty(num_slots, dtype=int32), empty(num_blocks, dtype=int32), empty(1, dtype=int32)


def _align(topk_ids: torch.Tensor, *values: Any) -> tuple[torch.Tensor, ...]:
    options = _options(values)
    out = _empty_outputs(topk_ids, *_core_sizes(_shape(topk_ids, options)))
    align_eagerly(topk_ids, **options, out=out)
    return out


def _align_fake(topk_ids: torch.Tensor, *values: Any) -> tuple[torch.Tensor, ...]:
    options = _options(values)
    refuse_followed(options.get("statistics"))  # while it is compiled, for the graph hides it
    shape = _shape(topk_ids, options)
    is_symbolic = any(isinstance(size, torch.SymInt) for size in shape)
    return _empty_outputs(topk_ids, *(symbolic_sizes if is_symbolic else _core_sizes)(shape))


def _align_out(topk_ids: torch.Tensor, *values: Any, **outputs: torch.Tensor) -> None:
    out = tuple(outputs[name] for name in AlignedBlocks._fields)
    align_eagerly(topk_ids, **_options(values), out=out)


def _align_out_fake(topk_ids: torch.Tensor, *values: Any, **outputs: torch.Tensor) -> None:
    refuse_followed(_options(values).get("statistics"))


for _device in ("CPU", "CUDA"):
    _library.impl("align_block_size", _align, _device)
    _library.impl("align_block_size.out", _align_out, _device)
torch.library.register_fake(_op.default, _align_fake, lib=_library)
torch.library.register_fake(_op.out, _align_out_fake, lib=_library)


def align_in_graph(topk_ids: Any, *, out: Any = None, **options: Any) -> Any:
    """`tessera.align_block_size` in terms of the ops, for Dynamo to trace."""
    if out is None:
        return AlignedBlocks(*_op.default(topk_ids, **options))
    outputs = dict(zip(AlignedBlocks._fields, out, strict=True))
    _op.out(topk_ids, **options, **outputs)
    return out
