"""What `tessera verify` finds in implementations of every op that break its contract."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tessera import verification
from tessera._device import HOST
from tessera._library import load
from tessera._op import Op, op_names

# A case of each op with an output that NumPy has the data type of; with gaps where it may have any.
CASES = {
    "align_block_size": "block_7",
    "batched_align_block_size": "8x64/16",
    "lora_align_block_size": "decode",
    "moe_permute": "rows_apart_fp32",  # of which a call writes all rows
    "moe_sum": "rows_apart_fp32",
    "moe_unpermute": "rows_apart_fp32",
    "quantize_fp8": "rows_apart/given_fp16",
    "fused_experts": "rows_apart_unaligned",
    "select_experts": "rows_apart_fp32",
    "fused_moe": "rows_apart_unaligned",
    "select_and_align": "rows_apart_fp32",
}
# What another implementation of the same op is called here: it is the reference, spoiled.
OTHER = "cpu/reference"
Spoil = Callable[[dict[str, Any]], None]


def problems(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Spoil) -> list[str]:
    """The problems found if `spoil` changes the arrays after each call of the reference."""
    op = Op(name)
    right = op.call

    def wrong(*values: Any) -> int:
        missing: int = right(*values)
        names = (row.name for row in op.arguments)
        spoil({"workspace": values[0]} | dict(zip(names, values[3:], strict=True)))
        return missing

    verification._reference_of.cache_clear()
    verification._reference_of(op, CASES[name], 0)
    monkeypatch.setattr(op, "call", wrong)
    return verification.problems(op, CASES[name], 0, OTHER)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        (name, implementation)
        for name in op_names()
        for implementation, refusal in verification.implementations(Op(name), HOST).items()
        if not refusal
    ],
)
def test_every_case_of_every_implementation(name: str, implementation: str) -> None:
    op = Op(name)
    cases = [*verification.case_names(op), *(f"random:{n}:2000" for n in range(50))]
    found = {}
    for case in cases:
        # Some take one data type alone.
        with contextlib.suppress(NotImplementedError):
            found[case] = verification.problems(op, case, 0, implementation)
    assert len(found) > len(cases) / 10
    assert {case: problems for case, problems in found.items() if problems} == {}


@pytest.mark.parametrize("name", op_names())
def test_a_right_implementation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(monkeypatch, name, lambda arrays: None) == []


@pytest.mark.parametrize("name", op_names())
def test_another_bit_in_any_output(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in Op(name).outputs:

        def spoil(arrays: dict[str, Any], output: str = row.name) -> None:
            words = arrays[output].view(f"u{arrays[output].itemsize}")
            words[(-1,) * words.ndim] ^= 1 << (8 * words.itemsize - 2)

        found = problems(monkeypatch, name, spoil)
        if load().function("op_fixes_bits")(name):
            difference = found.pop(0)
            assert difference.startswith(f"{row.name}[")
            assert "]: cpu/reference has " in difference
        assert found  # by the checker
        assert not any(" has " in message for message in found)


def test_bits_that_change_from_call_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the contract does not fix the bits, equal calls have equal ones."""
    calls = itertools.count()

    def spoil(arrays: dict[str, Any]) -> None:
        if next(calls) == 1:
            arrays["output"].view(np.uint16)[0, 0] ^= 1

    difference = problems(monkeypatch, "fused_experts", spoil)[0]
    assert difference.startswith("output[0, 0]: the same call, repeated, has ")


@pytest.mark.parametrize("name", op_names())
@pytest.mark.parametrize("place", [0, 63, -64, -1])
def test_a_byte_beside_any_output(name: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in Op(name).outputs:

        def spoil(arrays: dict[str, Any], output: str = row.name) -> None:
            arrays[output].base[place] = 0

        assert problems(monkeypatch, name, spoil) == [f"memory beside {row.name} was written"]


def test_a_byte_between_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(arrays: dict[str, Any]) -> None:
        output = arrays["output"]
        output.base[64 + 4 * output.shape[1]] = 0

    assert problems(monkeypatch, "moe_sum", spoil) == ["memory beside output was written"]


@pytest.mark.parametrize("name", op_names())
@pytest.mark.parametrize("place", [0, -1])
def test_a_byte_beside_the_workspace(
    name: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(arrays: dict[str, Any]) -> None:
        arrays["workspace"].base[place] = 0

    assert problems(monkeypatch, name, spoil) == ["memory beside workspace was written"]


@pytest.mark.parametrize("name", op_names())
def test_a_byte_of_any_input(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = Op(name)
    given = verification.case_call(op, CASES[name], 0).memory
    for each in (row.name for row in op.inputs if row.name in given):

        def spoil(arrays: dict[str, Any], input_: str = each) -> None:
            arrays[input_].base[64] ^= 1

        assert f"{each} was written" in problems(monkeypatch, name, spoil)


def test_a_call_that_asks_for_more_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    op = Op("batched_align_block_size")
    verification._reference_of(op, "8x64/16", 0)
    monkeypatch.setattr(op, "call", lambda *values: 24)
    first, *others = verification.problems(op, "8x64/16", 0, OTHER)
    assert first == "a workspace of 0 bytes was asked for, then 24"
    assert others  # the outputs are as before the call


@pytest.mark.parametrize("name", op_names())
def test_arrays_of_torch_in_place_of_numpys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, with tensors of the host."""
    torch = pytest.importorskip("torch")
    op = Op(name)
    cases = [*verification.case_names(op), *(f"random:{n}:500" for n in range(20))]
    expected = {case: verification._run(op, case_of(op, case), OTHER, HOST) for case in cases}
    monkeypatch.setattr(verification, "on_device", lambda array, index: torch.from_numpy(array))
    monkeypatch.setattr(verification, "_workspace_bytes", lambda *call: 9)
    for case in cases:
        ran = verification._run(op, case_of(op, case), OTHER, 0)
        assert ran.problems == []
        assert ran.memory.keys() == expected[case].memory.keys()
        for array, memory in ran.memory.items():
            assert np.array_equal(memory, expected[case].memory[array])


def case_of(op: Op, name: str) -> Any:
    return verification.case_call(op, name, 3)


def test_a_bfloat16_in_a_message_is_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    array = verification.CaseArray("bfloat16", (2, 2), (3, 1))
    one, other = (np.zeros(128 + array.num_bytes, np.uint8) for _ in range(2))
    array.words(other)[1, 0] = 0x3F80
    (text,) = verification._differences(array, one, other, "cpu/reference")
    assert text == "[1, 0]: cpu/reference has 0x3f80, found 0x0000"
