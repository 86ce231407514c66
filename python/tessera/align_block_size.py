"""`align_block_size` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import NamedTuple

from tessera._library import load, refusal

Array = TypeVar("Array")
Array_co = TypeVar("Array_co", covariant=True)

_INT32 = np.dtype(np.int32)

# Calls with outputs shorter than this take some ten microseconds, and keep the interpreter lock.
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


class _Framework(NamedTuple):
    """What Tessera needs of the framework that an array comes from."""

    num_elements: Callable[[Any], int]
    # Takes topk_ids and the lengths of the first two outputs.
    empty_outputs: Callable[[Any, int, int], AlignedBlocks[Any]]
    # Turns NumPy outputs into the framework's own, where it cannot allocate them.
    adopt: Callable[[Any, tuple[Any, ...]], AlignedBlocks[Any]] | None = None


def _empty_numpy(topk_ids: object, num_slots: int, num_blocks: int) -> AlignedBlocks[Any]:
    empty = np.empty
    return AlignedBlocks(empty(num_slots, _INT32), empty(num_blocks, _INT32), empty(1, _INT32))


def _torch_framework(torch: Any) -> _Framework:
    empty, from_numpy, int32 = torch.empty, torch.from_numpy, torch.int32

    def empty_torch(topk_ids: Any, num_slots: int, num_blocks: int) -> AlignedBlocks[Any]:
        if topk_ids.is_cpu:  # half the time that `torch.empty` of a stated device takes
            return AlignedBlocks(
                from_numpy(np.empty(num_slots, _INT32)),
                from_numpy(np.empty(num_blocks, _INT32)),
                from_numpy(np.empty(1, _INT32)),
            )
        device = topk_ids.device
        return AlignedBlocks(
            empty(num_slots, dtype=int32, device=device),
            empty(num_blocks, dtype=int32, device=device),
            empty(1, dtype=int32, device=device),
        )

    return _Framework(torch.Tensor.numel, empty_torch)


def _adopt_numpy(topk_ids: Any, outputs: tuple[Any, ...]) -> AlignedBlocks[Any]:
    namespace = topk_ids.__array_namespace__()
    return AlignedBlocks(*(namespace.from_dlpack(array) for array in outputs))


class _Frameworks(dict[type, _Framework]):
    """The framework of each type of array; a new type is looked into once."""

    def __missing__(self, kind: type) -> _Framework:
        torch = sys.modules.get("torch")
        if issubclass(kind, np.ndarray):
            framework = _Framework(lambda array: array.size, _empty_numpy)
        elif torch is not None and issubclass(kind, torch.Tensor):
            framework = _torch_framework(torch)
        else:
            adopt = _adopt_numpy if hasattr(kind, "__array_namespace__") else None
            framework = _Framework(lambda array: np.from_dlpack(array).size, _empty_numpy, adopt)
        self[kind] = framework
        return framework


_FRAMEWORKS = _Frameworks()


@functools.lru_cache(maxsize=4096)
def _output_lengths(
    num_ids: int, block_size: int, num_experts: int, pad_sorted_ids: bool
) -> tuple[int, int]:
    lengths = np.empty(2, np.int64)
    sizes = load().function("align_block_size_sizes")
    sizes(num_ids, block_size, num_experts, pad_sorted_ids, lengths)
    return int(lengths[0]), int(lengths[1])


class _Memory:
    """Memory of a read-only NumPy array, for `np.asarray` to view as if it were writable."""

    def __init__(self, array: Any) -> None:
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
        self.owner = array


def exportable(array: Any) -> Any:
    """An input of the op, such that DLPack can carry it: NumPy refuses read-only arrays."""
    if isinstance(array, np.ndarray) and not array.flags.writeable and array.dtype.isnative:
        return np.asarray(_Memory(array))
    return array


def _refuse_read_only(arrays: tuple[object, ...], names: tuple[str, ...]) -> None:
    # DLPack, as the FFI asks for it, does not tell whether memory may be written.
    for index, array in enumerate(arrays):
        if isinstance(array, np.ndarray) and not array.flags.writeable:
            raise ValueError(
                f"align_block_size: {names[index]}: expected a writable array, got a read-only one"
            )


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
    expert_counts: Any = ...,
    num_dropped: Any = ...,
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
    expert_counts: Any = ...,
    num_dropped: Any = ...,
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
    expert_counts: Any = None,
    num_dropped: Any = None,
    num_threads: int | None = None,
    out: tuple[Any, ...] | None = None,
) -> Any:
    """Group (token, slot) pairs by expert, every group padded to whole blocks.

    N below is the number of elements of `topk_ids`; the capacity is N + min(N, num_experts) *
    (block_size - 1). All arrays are contiguous and on one device.

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
        expert_counts: int32[num_experts] to write the size of each group to, padding excluded.
        num_dropped: int32[1] to write the number of ids outside [0, num_experts) to.
        num_threads: host threads to use at most, capped by TESSERA_NUM_THREADS; None stands for
            that, or, where it is unset, for the cores of this process. Never changes the result.
        out: tuple of the three arrays to write to, which may be longer than needed. Nothing is
            allocated then.

    Returns:
        `out` if given, else new arrays: NumPy's for NumPy, torch's on the same device for torch.
        For any other array they are made by `from_dlpack` of its `__array_namespace__`, and are
        NumPy's where it has none.

    Raises:
        TypeError: an argument has the wrong type. Nothing was written; so for all errors.
        ValueError: a value, size, device or layout lies outside the op's domain.
        NotImplementedError: nothing in this build can run the call.
        RuntimeError: the machine refused.
    """
    try:
        library = load()
        if out is None:
            framework = _FRAMEWORKS[type(topk_ids)]
            num_slots, num_blocks = _output_lengths(
                framework.num_elements(topk_ids), block_size, num_experts, bool(pad_sorted_ids)
            )
            outputs: tuple[Any, ...] = framework.empty_outputs(topk_ids, num_slots, num_blocks)
        else:
            if not isinstance(out, tuple) or len(out) != 3:
                got = f"one of {len(out)}" if isinstance(out, tuple) else type(out).__name__
                raise TypeError(
                    f"align_block_size: out: expected a tuple of three arrays, got {got}"
                )
            outputs = out
            _refuse_read_only(outputs, AlignedBlocks._fields)
            num_slots = _FRAMEWORKS[type(outputs[0])].num_elements(outputs[0])
        if expert_counts is not None or num_dropped is not None:
            _refuse_read_only((expert_counts, num_dropped), ("expert_counts", "num_dropped"))
        align = library.align_short if num_slots < _LONG_CALL_SLOTS else library.align_long
        align(  # in the order of the parameters in ffi.cc
            exportable(topk_ids),
            None if expert_map is None else exportable(expert_map),
            *outputs,
            expert_counts,
            num_dropped,
            block_size,
            num_experts,
            bool(ignore_invalid_experts),
            bool(pad_sorted_ids),
            tail_expert,
            0 if num_threads is None else num_threads,
            "",
        )
    except Exception as error:
        optional = {
            "expert_map": expert_map,
            "expert_counts": expert_counts,
            "num_dropped": num_dropped,
        }
        raise refusal(
            error,
            {
                "topk_ids": topk_ids,
                **dict(
                    zip(AlignedBlocks._fields, out if isinstance(out, tuple) else (), strict=False)
                ),
                **{name: array for name, array in optional.items() if array is not None},
            },
            {
                "block_size": block_size,
                "num_experts": num_experts,
                "tail_expert": tail_expert,
                "num_threads": 0 if num_threads is None else num_threads,
            },
        ) from None
    if out is not None:
        return out
    return outputs if framework.adopt is None else framework.adopt(topk_ids, outputs)
