"""`moe_unpermute` for NumPy arrays, torch tensors and whatever else speaks DLPack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from tessera._call import call
from tessera._frameworks import FRAMEWORKS
from tessera._op import Op
from tessera._torch_hook import call_traced, is_traced, register
from tessera._torch_registry import Shape, TorchOp
from tessera.contract import Violation, violations

Array = TypeVar("Array")

_OP = Op("moe_unpermute")


def moe_unpermute(
    rows: Array,
    topk_weights: Any,
    inverse: Any,
    *,
    num_threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Bring the rows of a grouped GEMM back to the tokens, and add up those of each, weighted.

    output[t, h] = sum over s of topk_weights[t, s] * rows[inverse[t, s], h], for the slots s whose
    inverse[t, s] is a row; any other number, such as -1, adds nothing. The sum is in float32 and in
    the order of the slots, each step one fused multiply-add; it is rounded once, to the data type
    of the output. Without weights they are 1. A token without a row gets +0. So the bits do not
    depend on the device, the number of threads, the other tokens or the order of the rows.
    `include/tessera/moe_unpermute.hpp` has the contract.

    All arrays are on one device, where the op runs: on a GPU, on the current stream of torch or
    CuPy, without waiting for it; a graph may capture it. Calls with JAX arrays on a GPU are waited
    for. Autograd does not follow the call.

    Args:
        rows: float16, bfloat16 or float32 [M, H]; rows may lie apart, but the last axis is
            contiguous. Rows that no pair has may hold anything. NumPy has no bfloat16 that it
            exports; torch and JAX have.
        topk_weights: float32 [T, k], contiguous; or None.
        inverse: int32 [T, k], contiguous, k at least 1: the row of each pair of a token and a slot.
        num_threads: host threads to use at most, capped by TESSERA_NUM_THREADS; None and 0 stand
            for that, or, where it is unset, for the cores of this process. Never changes the
            result.
        out: [T, H] of the data type of `rows`, to write to; its rows may lie apart, and what is
            between them stays as it is. It may not overlap an input.

    Returns:
        `out` if given, else a new array [T, H] in the framework of `rows`.

    Raises:
        TypeError: an argument has the wrong type. Nothing was written; so for all errors.
        ValueError: a value, shape, device or layout lies outside the op's domain, or autograd
            follows an array.
        NotImplementedError: nothing in this build can run the call.
        RuntimeError: the machine refused; `torch.OutOfMemoryError`, if torch has no memory left.
        MemoryError: NumPy's own, where it has no memory for the output.
    """
    if is_traced(FRAMEWORKS[type(rows)]):
        others = {"topk_weights": topk_weights, "inverse": inverse, "num_threads": num_threads}
        result: Array = call_traced(_OP, rows, out, **others)
    else:
        result = _eagerly(rows, topk_weights, inverse, num_threads, out)
    return result


def _eagerly(rows: Any, topk_weights: Any, inverse: Any, num_threads: int | None, out: Any) -> Any:
    threads = 0 if num_threads is None else num_threads
    return call(_OP, FRAMEWORKS[type(rows)], rows, (topk_weights, inverse), (), out, threads)


def _shapes(arguments: Mapping[str, Any]) -> tuple[Shape, ...]:
    return ((arguments["inverse"].shape[0], arguments["rows"].shape[1]),)


register(TorchOp(_OP, moe_unpermute, _eagerly, _shapes))


def moe_unpermute_contract_violations(
    rows: Any,
    topk_weights: Any,
    inverse: Any,
    output: Any,
    *,
    num_threads: int | None = None,
    out: Any = None,
) -> list[Violation]:
    """Judge an output of `moe_unpermute`, whoever computed it, against the op's contract.

    Takes the arguments of the call and its result, and ignores `num_threads` and `out`, on which
    the rules do not depend. Waits for arrays on a device, and copies them to the host. Time is
    linear in the elements that are added. A program that sums in another order than the slots'
    breaks the rule `exact_bits` alone.

    Returns:
        At most one violation for each of the op's rules; none if the contract holds.
    """
    return violations(_OP, (rows, topk_weights, inverse), output, ())
