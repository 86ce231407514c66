"""Integers of any length, in every argument of every op that takes one."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import tessera
from small_calls import CALLS, X
from tessera.contract import synthetic_topk_ids

LOGITS = np.zeros((2, 3), np.float32)


def numbers_of(op: str) -> list[str]:
    """The parameters of a function that take integers, or numbers."""
    parameters = inspect.signature(getattr(tessera, op)).parameters.values()
    kinds = ("int", "float")
    return [one.name for one in parameters if any(k in str(one.annotation) for k in kinds)]


NUMBERS = [(op, name) for op in CALLS for name in numbers_of(op)]
LENGTHS = {"2^63": 2**63, "2^5000": 2**5000, "-2^20000": -(2**20000), "2^200000": 2**200000}


@pytest.mark.parametrize("value", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("given", ["new", "out"])
@pytest.mark.parametrize(("op", "name"), NUMBERS)
def test_a_long_integer_is_refused_by_name(op: str, name: str, given: str, value: int) -> None:
    arrays, numbers = CALLS[op]
    function = getattr(tessera, op)
    out = function(*arrays, **numbers) if given == "out" else None
    with pytest.raises(ValueError) as caught:
        function(*arrays, **numbers | {name: value}, out=out)
    message = str(caught.value)
    assert message.startswith(f"{op}: {name}: expected ")
    shown = str(value) if value == 2**63 else f"an integer of {value.bit_length()} bits"
    assert message.endswith(f", got {shown}")


LONG = 10**5000
GOT = "an integer of 16610 bits"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: tessera.quantize_fp8(X, group=(128, LONG)),
            "quantize_fp8: group: expected 'tensor', 'row', 128 or (128, 128), got a tuple with "
            "an integer of thousands of digits",
        ),
        (
            lambda: tessera.explain(LONG, 64, 128),
            f"align_block_size: num_ids: expected an integer in [0, 2147483647], got {GOT}",
        ),
        (
            lambda: tessera.explain(4, 4, 4, num_threads=LONG),
            f"align_block_size: num_threads: expected an integer of 64 bits, got {GOT}",
        ),
        (
            lambda: tessera.explain(
                "select_experts", T=1, E=4, top_k=1, dtype="float32", routed_scaling_factor=LONG
            ),
            "select_experts: routed_scaling_factor: expected a number that float32 holds, got "
            + GOT,
        ),
        (
            lambda: tessera.explain(4, 4, 4, device=LONG),
            f"align_block_size: device: expected the number of a CUDA device, got {GOT}",
        ),
        (
            lambda: tessera.warmup(2**63),
            f"warmup: device: expected the number of a CUDA device, got {2**63}",
        ),
        (
            lambda: tessera.warmup(f"cuda:{2**63}"),
            f"warmup: device: expected cpu, cuda or cuda:N, got 'cuda:{2**63}'",
        ),
        (
            lambda: synthetic_topk_ids(4, LONG, 2),
            "synthetic_topk_ids: num_experts: expected an integer in [1, 2147483647], got " + GOT,
        ),
        (
            lambda: tessera.select_experts_contract_violations(
                LOGITS, tessera.select_experts(LOGITS, top_k=2), top_k=LONG
            ),
            f"select_experts: top_k: expected an integer of 64 bits, got {GOT}",
        ),
    ],
)
def test_other_functions(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


def test_a_number_of_numpy() -> None:
    with pytest.raises(ValueError) as caught:
        tessera.select_experts(LOGITS, top_k=1, routed_scaling_factor=np.uint64(2**63))
    assert str(caught.value) == (
        "select_experts: routed_scaling_factor: expected a float or an integer of 64 bits, got "
        f"{2**63}"
    )


def test_a_data_type() -> None:
    with pytest.raises(TypeError, match=f"^select_experts: dtype: expected one of .*, got {GOT}$"):
        tessera.explain("select_experts", T=1, E=4, top_k=1, dtype=LONG)
