"""`align_block_size` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt

from tessera._arrays import refused_array
from tessera._eager_align_block_size import align_eagerly
from tessera._frameworks import FRAMEWORKS
from tessera._outputs import AlignedBlocks as AlignedBlocks
from tessera._outputs import output_sizes as output_sizes
from tessera._outputs import require_triple

Array = TypeVar("Array")


@overload
def align_block_size(
    topk_ids: npt.NDArray[Any],
    *,
    block_size: int,
    num_experts: int,
    expert_map: Any = ...,
    ignore_invalid_experts: bool = ...,
    pad_sorted_ids: bool = ...,
    tail_expert: int = ...,
    map_tail: bool = ...,
    filtered_group: bool = ...,
    expert_counts: Any = ...,
    num_dropped: Any = ...,
    statistics: Any = ...,
    validate: bool | Literal["now"] | None = ...,
    num_threads: int | None = ...,
    out: tuple[npt.NDArray[np.int32], ...] | None = ...,
) -> AlignedBlocks[npt.NDArray[np.int32]]: ...


@overload
def align_block_size(
    topk_ids: Array,
    *,
    block_size: int,
    num_experts: int,
    expert_map: Any = ...,
    ignore_invalid_experts: bool = ...,
    pad_sorted_ids: bool = ...,
    tail_expert: int = ...,
    map_tail: bool = ...,
    filtered_group: bool = ...,
    expert_counts: Any = ...,
    num_dropped: Any = ...,
    statistics: Any = ...,
    validate: bool | Literal["now"] | None = ...,
    num_threads: int | None = ...,
    out: tuple[Array, ...] | None = ...,
) -> AlignedBlocks[Array]: ...


def align_block_size(
    topk_ids: Any,
    *,
    block_size: int,
    num_experts: int,
    expert_map: Any = None,
    ignore_invalid_experts: bool = False,
    pad_sorted_ids: bool = False,
    tail_expert: int = -1,
    map_tail: bool = False,
    filtered_group: bool = False,
    expert_counts: Any = None,
    num_dropped: Any = None,
    statistics: Any = None,
    validate: bool | Literal["now"] | None = None,
    num_threads: int | None = None,
    out: tuple[Any, ...] | None = None,
) -> Any:
    """Group (token, slot) pairs by expert, every group padded to whole blocks.

    N below is the number of elements of `topk_ids`; the capacity is N + min(N, num_experts) *
    (block_size - 1). All arrays are contiguous and on one device, where the op runs: on a GPU, on
    the current stream of torch or CuPy, without waiting for it; a graph may capture it. Calls with
    JAX arrays on a GPU are waited for.

    Args:
        topk_ids: any shape, any of the eight integer types; expert of each (token, slot) pair.
            Ids outside [0, num_experts) are dropped.
        block_size: slots in a block, at least 1.
        num_experts: at least 1.
        expert_map: int32[num_experts], the local number of each global expert; any value outside
            [0, num_experts) marks an expert that lives elsewhere.
        ignore_invalid_experts: with a map, group by local expert and leave out the pairs of
            experts that live elsewhere. Without it such experts' blocks show -1.
        pad_sorted_ids: round the capacity up to a multiple of `block_size`.
        tail_expert: int32 value of `expert_ids` past the last block.
        map_tail: with a map, show the map's entry of `tail_expert` there, -1 if it has none.
        filtered_group: pairs with id -1 are not dropped but form a group of their own, the first,
            whose blocks show -1. The capacity is then N + min(N, num_experts + 1) *
            (block_size - 1).
        expert_counts: int32[num_experts] to write the size of each group to, padding excluded.
        num_dropped: int32[1] to write the number of ids that are dropped to.
        statistics: float64[6] to write the call's `RoutingStatistics` to.
        validate: whether ids that are dropped, and map entries outside [-1, num_experts), are
            errors. With True, a call on the host raises once it has run, and one on a GPU, which is
            not waited for, leaves it to `tessera.check()`; with "now" that raises too, and is
            waited for. None stands for TESSERA_VALIDATE, off by default.
        num_threads: host threads to use at most, capped by TESSERA_NUM_THREADS; None stands for
            that, or, where it is unset, for the cores of this process. Never changes the result.
        out: tuple of the three arrays to write to, which may be longer than needed. No output is
            allocated then; large batches on a GPU still take workspace from its framework.

    Returns:
        `out` if given, else new arrays, parts of one allocation: NumPy's for NumPy, torch's on the
        same device for torch, CuPy's for CuPy. For any other array on the host they are made by
        `from_dlpack` of its `__array_namespace__`, and are NumPy's where it has none. Each begins
        at a multiple of 16 bytes; of 128 where the allocation itself does, as on a GPU.

    Raises:
        TypeError: an argument has the wrong type. Nothing was written; so for all errors but
            `InvalidRoutingError`.
        ValueError: a value, size, device or layout lies outside the op's domain.
        InvalidRoutingError: a `ValueError`, with `validate` on the host, and with "now" anywhere:
            an id or map entry is invalid.
        NotImplementedError: nothing in this build can run the call.
        RuntimeError: the machine refused; `torch.OutOfMemoryError`, if torch has no memory left.
        MemoryError: NumPy's own, where it has no memory for the outputs.
    """
    framework = FRAMEWORKS[type(topk_ids)]
    if framework.num_modes is not None and (framework.num_modes() or framework.is_tracing()):
        return _align_traced(
            topk_ids,
            validate,
            out,
            block_size=block_size,
            num_experts=num_experts,
            expert_map=expert_map,
            ignore_invalid_experts=ignore_invalid_experts,
            pad_sorted_ids=pad_sorted_ids,
            tail_expert=tail_expert,
            map_tail=map_tail,
            filtered_group=filtered_group,
            expert_counts=expert_counts,
            num_dropped=num_dropped,
            statistics=statistics,
            num_threads=num_threads,
        )
    return align_eagerly(
        topk_ids,
        block_size,
        num_experts,
        expert_map,
        ignore_invalid_experts,
        pad_sorted_ids,
        tail_expert,
        map_tail,
        filtered_group,
        expert_counts,
        num_dropped,
        statistics,
        num_threads,
        validate,
        out,
    )


def _align_traced(
    topk_ids: Any, validate: object, out: tuple[Any, ...] | None, **options: Any
) -> Any:
    """The call as an op of torch's, for what traces it to see, and to call when it pleases."""
    if validate is not None:
        raise ValueError(
            "align_block_size: validate: expected None in a call that torch traces, where "
            f"TESSERA_VALIDATE decides, got {validate!r}"
        )
    if out is not None:
        require_triple("align_block_size", out)
    try:
        return _align_in_graph(topk_ids, out=out, **options)
    except (NotImplementedError, TypeError) as error:
        # Some subclasses of tensors take no op that they do not know.
        refused = refused_array("align_block_size", {"topk_ids": topk_ids})
        if refused is None or str(error).startswith("align_block_size: "):
            raise
        try:
            raise refused from error
        finally:
            del refused  # its traceback holds this frame, and so the arrays


def _align_in_graph(*args: Any, **kwargs: Any) -> Any:
    """What `torch.compile` traces in place of `align_block_size`."""
    from tessera.torch_ops import align_in_graph

    return align_in_graph(*args, **kwargs)


# Told to Dynamo by this attribute, so that an eager call does not have to ask whether it is traced.
align_block_size.__dict__["_torchdynamo_inline"] = _align_in_graph
