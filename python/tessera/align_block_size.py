"""`align_block_size` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

from __future__ import annotations

import functools
import sys
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import NamedTuple

from tessera._device import HOST
from tessera._frameworks import FRAMEWORKS, exportable, read_only
from tessera._library import dlpack_device, load, refusal
from tessera.strict import Report

Array = TypeVar("Array")
Array_co = TypeVar("Array_co", covariant=True)

# Calls on the host with outputs shorter than this take some ten microseconds, and keep the
# interpreter lock.
_LONG_CALL_SLOTS = 16384


class AlignedBlocks(NamedTuple, Generic[Array_co]):
    """Outputs of `align_block_size`: int32 arrays of one dimension.

    sorted_token_ids: [capacity or more], indices into the flattened `topk_ids`, grouped by expert
        and ascending inside a group. Padding, and all that follows the last group, is N.
    expert_ids: [ceil(capacity / block_size) or more], the expert of each block, then `tail_expert`.
    num_tokens_post_pad: [1], the padded total, a multiple of `block_size`.
    """

    sorted_token_ids: Array_co
    expert_ids: Array_co
    num_tokens_post_pad: Array_co


@functools.lru_cache(maxsize=4096)
def output_sizes(
    num_ids: int,
    block_size: int,
    num_experts: int,
    pad_sorted_ids: bool,
    cuda_index: int = HOST,
    implementation: str = "",
    filtered_group: bool = False,
) -> tuple[int, int, int]:
    """Lengths of `sorted_token_ids` and `expert_ids`, and bytes of workspace on the device."""
    sizes = np.empty(3, np.int64)
    device = dlpack_device(cuda_index)
    query = load().function("align_block_size_sizes")
    shape = (num_ids, block_size, num_experts, pad_sorted_ids, filtered_group)
    query(*shape, *device, implementation, sizes)
    num_slots, num_blocks, workspace_bytes = sizes.tolist()
    return num_slots, num_blocks, workspace_bytes


def require_triple(op: str, out: object) -> None:
    """Refuse an `out` that is no tuple of three."""
    if not isinstance(out, tuple) or len(out) != 3:
        got = f"one of {len(out)}" if isinstance(out, tuple) else type(out).__name__
        raise TypeError(f"{op}: out: expected a tuple of three arrays, got {got}")


def _written(
    out: object, expert_counts: object, num_dropped: object, statistics: object
) -> dict[str, object]:
    """The given arrays that a call writes to."""
    arrays = dict(zip(AlignedBlocks._fields, out if isinstance(out, tuple) else (), strict=False))
    optional = {
        "expert_counts": expert_counts,
        "num_dropped": num_dropped,
        "statistics": statistics,
    }
    return arrays | {name: array for name, array in optional.items() if array is not None}


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
            errors: reported by `tessera.check()` with True, at once with "now", which waits for the
            call. None stands for TESSERA_VALIDATE, off by default.
        num_threads: host threads to use at most, capped by TESSERA_NUM_THREADS; None stands for
            that, or, where it is unset, for the cores of this process. Never changes the result.
        out: tuple of the three arrays to write to, which may be longer than needed. No output is
            allocated then; large batches on a GPU still take workspace from its framework.

    Returns:
        `out` if given, else new arrays, parts of one allocation: NumPy's for NumPy, torch's on the
        same device for torch, CuPy's for CuPy. For any other array on the host they are made by
        `from_dlpack` of its `__array_namespace__`, and are NumPy's where it has none.

    Raises:
        TypeError: an argument has the wrong type. Nothing was written; so for all errors but
            `InvalidRoutingError`.
        ValueError: a value, size, device or layout lies outside the op's domain.
        InvalidRoutingError: a `ValueError`, with `validate="now"`: an id or map entry is invalid.
        NotImplementedError: nothing in this build can run the call.
        RuntimeError: the machine refused; `torch.OutOfMemoryError`, if torch has no memory left.
    """
    # Arrays of JAX let themselves be written to without a word.
    if "jax" in sys.modules and (
        refused := read_only(
            "align_block_size", _written(out, expert_counts, num_dropped, statistics)
        )
    ):
        raise refused from None
    library = load()
    if validate is None:
        validate = library.validate_default
    plain = not (map_tail or filtered_group or validate) and statistics is None
    # The shortest way for torch tensors on a GPU, where a microsecond counts. What it cannot do
    # comes again below, and is done there, or refused with the name of the argument.
    if plain and getattr(topk_ids, "is_cuda", False):
        try:
            if isinstance(out, tuple):
                sorted_token_ids, expert_ids, num_tokens_post_pad = out
                missing_workspace_bytes = library.align_long(
                    topk_ids,
                    expert_map,
                    sorted_token_ids,
                    expert_ids,
                    num_tokens_post_pad,
                    expert_counts,
                    num_dropped,
                    None,
                    block_size,
                    num_experts,
                    ignore_invalid_experts,
                    pad_sorted_ids,
                    tail_expert,
                    num_threads or 0,
                    None,
                )
                if missing_workspace_bytes == 0:
                    return out
            elif out is None:
                torch = sys.modules["torch"]
                num_slots, num_blocks, workspace_bytes = output_sizes(
                    topk_ids.numel(),
                    block_size,
                    num_experts,
                    pad_sorted_ids,
                    topk_ids.get_device(),
                )
                length = num_slots + num_blocks + 1
                memory = (
                    topk_ids.new_empty(length)
                    if topk_ids.dtype is torch.int32
                    else topk_ids.new_empty(length, dtype=torch.int32)
                )
                library.align_joined_long(
                    topk_ids,
                    expert_map,
                    memory,
                    num_slots,
                    num_blocks,
                    expert_counts,
                    num_dropped,
                    topk_ids.new_empty(workspace_bytes, dtype=torch.int8)
                    if workspace_bytes
                    else None,
                    block_size,
                    num_experts,
                    ignore_invalid_experts,
                    pad_sorted_ids,
                    tail_expert,
                    num_threads or 0,
                    None,
                )
                parts = torch.unsafe_split_with_sizes(memory, (num_slots, num_blocks, 1))
                return tuple.__new__(AlignedBlocks, parts)
        except Exception:
            pass
    report = None
    try:
        framework = FRAMEWORKS[type(topk_ids)]
        cuda_index = framework.cuda_index(topk_ids)
        pad_sorted_ids, filtered_group = bool(pad_sorted_ids), bool(filtered_group)
        workspace = None  # on the host it is the library's own
        if out is None or cuda_index != HOST:
            num_slots, num_blocks, workspace_bytes = output_sizes(
                framework.num_elements(topk_ids),
                block_size,
                num_experts,
                pad_sorted_ids,
                cuda_index,
                "",
                filtered_group,
            )
            # Freed when this function returns, which may be before the call has run: the allocators
            # of torch and CuPy reuse memory in the order of the stream that the call is on, under
            # graph capture too. An allocation of its own, so that the outputs do not keep it alive.
            if cuda_index != HOST and workspace_bytes != 0:
                workspace = framework.empty_bytes(topk_ids, workspace_bytes)
        if out is None:
            # One allocation, and one array across the boundary, in place of three.
            memory = framework.empty_int32(topk_ids, num_slots + num_blocks + 1)
            outputs: tuple[Any, ...] = (memory, num_slots, num_blocks)
            if plain:
                short, long = library.align_joined_short, library.align_joined_long
            else:
                short = long = library.align_joined_with_options
        else:
            require_triple("align_block_size", out)
            outputs = out
            if cuda_index == HOST:
                num_slots = FRAMEWORKS[type(out[0])].num_elements(out[0])
            if plain:
                short, long = library.align_short, library.align_long
            else:
                short = long = library.align_with_options
        if validate:
            report = Report(validate, topk_ids, framework, cuda_index, num_experts, filtered_group)
        arguments = (  # in the order of the parameters in the FFI
            topk_ids if framework.exportable is None else framework.exportable(topk_ids),
            None if expert_map is None else exportable(expert_map),
            *outputs,
            expert_counts,
            num_dropped,
            *(() if plain else (statistics, report and report.array)),
            workspace,
            block_size,
            num_experts,
            bool(ignore_invalid_experts),
            pad_sorted_ids,
            tail_expert,
            *(() if plain else (bool(map_tail), filtered_group)),
            0 if num_threads is None else num_threads,
            None,
        )
        # A launch waits where its stream's queue is full, and what empties that may need the lock.
        align = short if num_slots < _LONG_CALL_SLOTS and cuda_index == HOST else long
        if framework.launch is None:
            align(*arguments)
        else:
            framework.launch(topk_ids, lambda: align(*arguments))
    except Exception as error:
        if report is not None:
            report.cancel()
        written = _written(out, expert_counts, num_dropped, statistics)
        read = {"topk_ids": topk_ids} | ({} if expert_map is None else {"expert_map": expert_map})
        integers = {
            "block_size": block_size,
            "num_experts": num_experts,
            "tail_expert": tail_expert,
            "num_threads": 0 if num_threads is None else num_threads,
        }
        cause = read_only("align_block_size", written) or error
        raise refusal("align_block_size", cause, read | written, integers) from None
    if report is not None:
        report.submit()
    if out is not None:
        return out
    parts = framework.split(memory, num_slots, num_blocks)
    if framework.adopt is not None:
        parts = [framework.adopt(topk_ids, part) for part in parts]
    return tuple.__new__(AlignedBlocks, parts)


def _align_in_graph(*args: Any, **kwargs: Any) -> Any:
    """What `torch.compile` traces in place of `align_block_size`."""
    from tessera.torch_ops import align_in_graph

    return align_in_graph(*args, **kwargs)


# Told to Dynamo by this attribute, so that an eager call does not have to ask whether it is traced.
align_block_size.__dict__["_torchdynamo_inline"] = _align_in_graph
