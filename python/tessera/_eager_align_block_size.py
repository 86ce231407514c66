"""`align_block_size` as it runs eagerly, from checked arrays to the FFI and back."""

from __future__ import annotations

import sys
from typing import Any, Literal

from tessera._arrays import UNFIT, any_unfit, refused_array, require_eager
from tessera._device import HOST
from tessera._frameworks import FRAMEWORKS, exportable
from tessera._library import Library, load, refusal
from tessera._outputs import LONG_CALL, AlignedBlocks, plan_of, require_triple
from tessera.strict import Report, require_flag

_OP = "align_block_size"


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


def refuse_followed(statistics: object) -> None:
    """Refuse statistics that autograd follows, which would not see them written."""
    if statistics is not None and getattr(statistics, "requires_grad", False):
        raise ValueError(
            f"{_OP}: statistics: expected a tensor that autograd does not follow, got one that "
            "requires grad (its detach() does not)"
        )


def _check_reports(expert_counts: object, num_dropped: object, statistics: object) -> None:
    """Refuse what the FFI would take without a word, of the optional outputs."""
    if any_unfit((expert_counts, num_dropped, statistics), written=True):
        raise TypeError(UNFIT)
    refuse_followed(statistics)


def _align_cuda_tensors(
    library: Library,
    topk_ids: Any,
    block_size: int,
    num_experts: int,
    expert_map: Any,
    ignore_invalid_experts: bool,
    pad_sorted_ids: bool,
    tail_expert: int,
    expert_counts: Any,
    num_dropped: Any,
    num_threads: int | None,
    out: tuple[Any, ...] | None,
) -> Any:
    """The shortest way for torch tensors on a GPU, where a microsecond counts."""
    torch = sys.modules["torch"]
    if num_threads is None:
        num_threads = 0
    workspace = None
    if out is not None:
        sorted_token_ids, expert_ids, num_tokens_post_pad = out
        # Most calls need no workspace; one that does says how much, and has done nothing.
        while missing_bytes := library.align_long(
            topk_ids,
            expert_map,
            sorted_token_ids,
            expert_ids,
            num_tokens_post_pad,
            expert_counts,
            num_dropped,
            workspace,
            block_size,
            num_experts,
            ignore_invalid_experts,
            pad_sorted_ids,
            tail_expert,
            num_threads,
            None,
        ):
            workspace = topk_ids.new_empty(missing_bytes, dtype=torch.int8)
        return out
    layout, workspace_bytes, _ = plan_of(
        topk_ids.numel(), block_size, num_experts, pad_sorted_ids, topk_ids.get_device()
    )
    int32 = torch.int32
    memory = (
        topk_ids.new_empty(layout.length)
        if topk_ids.dtype is int32
        else topk_ids.new_empty(layout.length, dtype=int32)
    )
    if workspace_bytes:
        workspace = topk_ids.new_empty(workspace_bytes, dtype=torch.int8)
    library.align_joined_long(
        topk_ids,
        expert_map,
        memory,
        layout.num_slots,
        layout.num_blocks,
        expert_counts,
        num_dropped,
        workspace,
        block_size,
        num_experts,
        ignore_invalid_experts,
        pad_sorted_ids,
        tail_expert,
        num_threads,
        None,
    )
    pieces = torch.unsafe_split_with_sizes(memory, layout.pieces)
    outputs = pieces if layout.outputs_of is None else layout.outputs_of(pieces)
    return tuple.__new__(AlignedBlocks, outputs)


def align_eagerly(
    topk_ids: Any,
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
    num_threads: int | None = None,
    validate: bool | Literal["now"] | None = None,
    out: tuple[Any, ...] | None = None,
) -> Any:
    """`align_block_size`, whatever records what is done with its arrays."""
    report = None
    try:
        framework = FRAMEWORKS[type(topk_ids)]
        library = load()
        if validate is None:
            validate = library.validate_default
        elif validate is not False and validate is not True:
            require_flag(validate)
        # A flag may be NumPy's, which the FFI does not take; most are the default.
        if ignore_invalid_experts is not False:
            ignore_invalid_experts = bool(ignore_invalid_experts)
        if pad_sorted_ids is not False:
            pad_sorted_ids = bool(pad_sorted_ids)
        if filtered_group is not False:
            filtered_group = bool(filtered_group)
        plain = not (map_tail or filtered_group or validate) and statistics is None
        is_unfit = framework.is_unfit
        if is_unfit is not None and is_unfit(topk_ids):
            raise TypeError(UNFIT)
        if expert_map is not None:
            is_map_unfit = FRAMEWORKS[type(expert_map)].is_unfit
            if is_map_unfit is not None and is_map_unfit(expert_map):
                raise TypeError(UNFIT)
            if framework.num_modes is None:  # else the caller has asked
                require_eager(_OP, (("expert_map", expert_map),))
            expert_map = exportable(expert_map)
        if not (expert_counts is num_dropped is statistics is None):
            _check_reports(expert_counts, num_dropped, statistics)
            if framework.num_modes is None:  # else the caller has asked
                written = _written(None, expert_counts, num_dropped, statistics)
                require_eager(_OP, written.items())
        if out is not None:
            require_triple(_OP, out)
            slots, blocks, totals = out
            are_alike = type(slots) is type(blocks) is type(totals) is type(topk_ids)
            if not are_alike:
                if any_unfit(out, written=True):
                    raise TypeError(UNFIT)
                if framework.num_modes is None:  # else the caller has asked
                    require_eager(_OP, zip(AlignedBlocks._fields, out, strict=True))
            elif framework.immutable or (
                is_unfit is not None and (is_unfit(slots) or is_unfit(blocks) or is_unfit(totals))
            ):
                raise TypeError(UNFIT)
        if plain and framework.num_modes is not None and topk_ids.is_cuda:  # torch's
            return _align_cuda_tensors(
                library,
                topk_ids,
                block_size,
                num_experts,
                expert_map,
                ignore_invalid_experts,
                pad_sorted_ids,
                tail_expert,
                expert_counts,
                num_dropped,
                num_threads,
                out,
            )
        cuda_index = framework.cuda_index(topk_ids)
        workspace = None  # on the host it is the library's own
        if out is None or cuda_index != HOST:
            layout, workspace_bytes, is_short = plan_of(
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
            memory = framework.empty_int32(topk_ids, layout.length)
            outputs: tuple[Any, ...] = (memory, layout.num_slots, layout.num_blocks)
            if plain:
                align = library.align_joined_short if is_short else library.align_joined_long
            else:
                align = library.align_joined_with_options
        else:
            outputs = out
            if plain:
                is_short = (
                    cuda_index == HOST
                    and num_experts < LONG_CALL
                    and are_alike
                    and framework.num_elements(slots) < LONG_CALL
                    and framework.num_elements(blocks) < LONG_CALL
                )
                align = library.align_short if is_short else library.align_long
            else:
                align = library.align_with_options
        if validate:
            report = Report(validate, topk_ids, framework, cuda_index, num_experts, filtered_group)
        arguments = (  # in the order of the parameters in the FFI
            topk_ids if framework.exportable is None else framework.exportable(topk_ids),
            expert_map,
            *outputs,
            expert_counts,
            num_dropped,
            *(() if plain else (statistics, report and report.array)),
            workspace,
            block_size,
            num_experts,
            ignore_invalid_experts,
            pad_sorted_ids,
            tail_expert,
            *(() if plain else (bool(map_tail), filtered_group)),
            0 if num_threads is None else num_threads,
            None,
        )
        if framework.launch is None:
            align(*arguments)
        else:
            framework.launch(topk_ids, lambda: align(*arguments))
    except Exception as error:
        if report is not None:
            report.cancel()
        written = _written(out, expert_counts, num_dropped, statistics)
        arrays = {"topk_ids": topk_ids, "expert_map": expert_map} | written
        if expert_map is None:
            del arrays["expert_map"]
        integers = {
            "block_size": block_size,
            "num_experts": num_experts,
            "tail_expert": tail_expert,
            "num_threads": 0 if num_threads is None else num_threads,
        }
        # No variable of this frame may hold it: its traceback holds the frame, and so the arrays.
        raise refusal(_OP, refused_array(_OP, arrays, written) or error, arrays, integers) from None
    if report is not None:
        report.submit()
    if out is not None:
        return out
    parts = framework.split(memory, layout)
    if framework.adopt is not None:
        parts = [framework.adopt(topk_ids, part) for part in parts]
    return tuple.__new__(AlignedBlocks, parts)
