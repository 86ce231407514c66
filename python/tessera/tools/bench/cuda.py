"""The contenders on a CUDA device: Python-level functions of torch tensors."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any

import tessera
from tessera.tools.bench.compositions import torch_composition
from tessera.tools.bench.contender import (
    CUDA_LIBRARY,
    Contender,
    Kind,
    TimedCall,
    absent,
    native_library,
)
from tessera.tools.bench.problem import Problem
from tessera.tools.bench.shapes import Shape
from tessera.tools.bench.torch_calls import torch_op_contenders

_ALL = ("graph", "chain", "l2", "eager", "cold")

# The textbook's counters must fit into a CTA's shared memory.
_TEXTBOOK_EXPERTS = 8192


def contenders() -> list[Contender]:
    """All contenders, available or not."""
    ours = Contender("tessera", "tessera", _ALL, prepare_tessera)
    out = Contender("tessera, out=", "cost", ("eager",), _prepare_tessera_out)
    torch_peer = Contender("torch", "peer", _ALL, _prepare_torch, refusal=_refuse_shift)
    empties = Contender("three torch.empty", "cost", ("eager",), _prepare_three_empty)
    peers = [torch_peer, *_native_contenders(), _vllm(), _sgl_kernel()]
    return [ours, out, *peers, empties, *torch_op_contenders()]


def prepare_tessera(problem: Problem) -> TimedCall:
    """The op as a user calls it, with the problem's outputs if it has any."""
    ids, options, out = problem.topk_ids, problem.options, problem.outputs
    return TimedCall.of(lambda: tessera.align_block_size(ids, **options, out=out), ids)


def _prepare_tessera_out(problem: Problem) -> TimedCall:
    ids, options, out = problem.topk_ids, problem.options, problem.empty_outputs()
    return TimedCall.of(lambda: tessera.align_block_size(ids, **options, out=out))


def _prepare_torch(problem: Problem) -> TimedCall:
    problem.require_experts("it indexes by them")
    ids, shape, num_slots = problem.topk_ids, problem.shape, problem.num_slots
    rest = (shape.block_size, shape.num_experts, num_slots, problem.expert_map)
    return TimedCall.of(lambda: torch_composition(ids, *rest), ids)


def _prepare_three_empty(problem: Problem) -> TimedCall:
    import torch

    empty, int32, device = torch.empty, torch.int32, problem.topk_ids.device
    slots, blocks = problem.num_slots, problem.num_blocks

    def run() -> object:
        return (
            empty(slots, dtype=int32, device=device),
            empty(blocks, dtype=int32, device=device),
            empty(1, dtype=int32, device=device),
        )

    return TimedCall.of(run)


def _refuse_shift(shape: Shape) -> str:
    return "" if shape.shift_bytes is None else "allocates its own outputs"


def _native_contenders() -> list[Contender]:
    floors = floor_contenders(
        lambda problem: (problem.topk_ids.clamp(min=0), problem.empty_outputs())
    )
    if why := floors[0].unavailable:
        names: list[tuple[str, Kind]] = [("textbook", "peer"), ("cub_radix", "peer")]
        empty = absent("empty kernel", "cost", why)
        return [*(absent(name, kind, why) for name, kind in names), *floors, empty]

    def refuse_many_experts(shape: Shape) -> str:
        fits = shape.num_experts <= _TEXTBOOK_EXPERTS
        return "" if fits else f"takes at most {_TEXTBOOK_EXPERTS} experts"

    return [
        Contender("textbook", "peer", _ALL, _prepare_textbook, refusal=refuse_many_experts),
        Contender("cub_radix", "peer", _ALL, _prepare_cub_radix),
        Contender("empty kernel", "cost", _ALL, _prepare_empty_kernel),
        *floors,
    ]


def floor_contenders(arrays_of: Callable[[Any], tuple[Any, tuple[Any, ...]]]) -> list[Contender]:
    """Floors of five grids, with and without programmatic dependent launch.

    Args:
        arrays_of: returns, for a problem, the non-negative 32-bit words that a floor reads, and
            three arrays like those that it writes.
    """
    try:
        native_library(CUDA_LIBRARY)
    except OSError as error:
        return [absent("floor", "floor", str(error))]
    import torch

    num_sms = torch.cuda.get_device_properties("cuda").multi_processor_count

    def floor(num_ctas: int, pdl: bool) -> Contender:
        def prepare(problem: Any) -> TimedCall:
            return _floor_call(*arrays_of(problem), num_ctas, pdl)

        name = f"floor/{num_ctas}" + ("/pdl" if pdl else "")
        return Contender(name, "floor", ("graph", "chain", "l2"), prepare)

    return [
        floor(num_ctas, pdl)
        for num_ctas in (1, 16, num_sms // 2, num_sms, 2 * num_sms)
        for pdl in (False, True)
    ]


def _floor_call(words: Any, outputs: tuple[Any, ...], num_ctas: int, pdl: bool) -> TimedCall:
    function = native_library(CUDA_LIBRARY).function("floor", release_gil=False)
    # The kernel reads and writes 16 bytes at a time, so its arrays are never shifted.
    words, outputs = words.clone(), tuple(array.clone() for array in outputs)

    def run() -> Any:
        function(words, *outputs, num_ctas, pdl)
        return outputs

    return TimedCall.of(run, words)


def _with_workspace(problem: Problem, function: Any, workspace_bytes: int) -> TimedCall:
    """A call that allocates outputs and workspace, as a framework's op does."""
    import torch

    ids, expert_map, shape = problem.topk_ids, problem.expert_map, problem.shape
    device, sizes = ids.device, (shape.block_size, shape.num_experts)
    empty_outputs = problem.empty_outputs

    def run() -> Any:
        outputs = empty_outputs()
        workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=device)
        function(ids, expert_map, *outputs, workspace, *sizes)
        return outputs

    return TimedCall.of(run, ids)


def _prepare_textbook(problem: Problem) -> TimedCall:
    function = native_library(CUDA_LIBRARY).function("textbook", release_gil=False)
    return _with_workspace(problem, function, 4 * problem.shape.num_experts)


def _prepare_cub_radix(problem: Problem) -> TimedCall:
    problem.require_experts("it sorts by as many bits as experts have")
    library = native_library(CUDA_LIBRARY)
    function = library.function("cub_radix", release_gil=False)
    size = library.function("cub_radix_workspace_bytes")
    ids = problem.host_ids
    return _with_workspace(
        problem, function, size(ids.size, problem.shape.num_experts, 8 * ids.itemsize)
    )


def _prepare_empty_kernel(problem: Problem) -> TimedCall:
    function = native_library(CUDA_LIBRARY).function("empty_kernel", release_gil=False)
    # Zeros, so that a reader finds no used slot.
    ids, outputs = problem.topk_ids, tuple(one.zero_() for one in problem.empty_outputs())

    def run() -> Any:
        function(ids, *outputs)
        return outputs

    return TimedCall.of(run, ids)


def _foreign(module: str, parameters: list[str]) -> Any:
    """`moe_align_block_size` of an engine, if its parameters begin with these.

    Raises:
        ImportError: it cannot be called as expected; the message says why.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{package} is not installed")
    try:
        function = importlib.import_module(module).moe_align_block_size
    except Exception as error:  # an engine of another CUDA version fails in many ways
        raise ImportError(f"{type(error).__name__}: {error}".partition("\n")[0]) from error
    found = list(inspect.signature(function).parameters)
    if found[: len(parameters)] != parameters:
        raise ImportError(f"expected the parameters {parameters}, got {found}")
    return function


def _version_of(package: str) -> str:
    return str(getattr(sys.modules.get(package), "__version__", ""))


def _vllm() -> Contender:
    module = "vllm.model_executor.layers.fused_moe.moe_align_block_size"
    try:
        align = _foreign(module, ["topk_ids", "block_size", "num_experts", "expert_map"])
    except ImportError as error:
        return absent("vllm", "peer", str(error))

    def prepare(problem: Problem) -> TimedCall:
        problem.require_experts("it counts them in front of its counters")
        ids, shape, expert_map = problem.topk_ids, problem.shape, problem.expert_map
        return TimedCall.of(
            lambda: align(ids, shape.block_size, shape.num_experts, expert_map), ids
        )

    return Contender(
        "vllm", "peer", _ALL, prepare, version=_version_of("vllm"), refusal=_refuse_shift
    )


def _sgl_kernel() -> Contender:
    arrays = ["sorted_token_ids", "experts_ids", "num_tokens_post_pad", "cumsum_buffer"]
    parameters = ["topk_ids", "num_experts", "block_size", *arrays, "pad_sorted_token_ids"]
    try:
        align = _foreign("sgl_kernel", parameters)
    except ImportError as error:
        return absent("sgl_kernel", "peer", str(error))

    def prepare(problem: Problem) -> TimedCall:
        import torch

        problem.require_experts("it makes a group of them")
        # SGLang calls it with one more expert, for ids of -1.
        ids, block_size = problem.topk_ids, problem.shape.block_size
        num_experts = problem.shape.num_experts + 1
        num_slots = ids.numel() * block_size
        if ids.numel() >= num_experts:
            num_slots = ids.numel() + num_experts * (block_size - 1)
        lengths = (num_slots, -(-num_slots // block_size), 1, num_experts + 1)

        def run() -> Any:
            slots, blocks, total, sums = (
                torch.empty(length, dtype=torch.int32, device=ids.device) for length in lengths
            )
            align(ids, num_experts, block_size, slots, blocks, total, sums, True)
            return slots, blocks, total

        return TimedCall.of(run, ids)

    def refusal(shape: Shape) -> str:
        if shape.dtype != "int32":
            return f"takes int32 ids only, not {shape.dtype}"
        return "takes no expert map" if shape.map != "none" else _refuse_shift(shape)

    return Contender(
        "sgl_kernel", "peer", _ALL, prepare, version=_version_of("sgl_kernel"), refusal=refusal
    )
