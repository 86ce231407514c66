"""Direct calls with any value of any argument: they give, raise and write what others do."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

# torch decides whether there are tests.
import tessera  # noqa: E402
from tessera._frameworks import FRAMEWORKS  # noqa: E402
from tessera.ops.align_block_size import ALIGN  # noqa: E402
from tessera.ops.batched_align_block_size import _OP as BATCHED_OP  # noqa: E402
from tessera.ops.lora_align_block_size import _OP as LORA_OP  # noqa: E402
from tessera.ops.moe_sum import _OP as SUM_OP  # noqa: E402
from tessera.ops.select_and_align import _OP as ALIGNED_OP  # noqa: E402
from tessera.ops.select_experts import _OP as SELECT_OP  # noqa: E402

IDS = torch.tensor([[3, 0], [1, 3], [9, 1]], dtype=torch.int32)
MAP = torch.tensor([1, -1, 0, 2], dtype=torch.int32)
LOGITS = torch.linspace(-2, 3, 24).sin().reshape(3, 8)

for kind in (torch.Tensor, torch.nn.Parameter):
    FRAMEWORKS[kind]  # makes the type known
if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    pytest.skip("torch lacks DLPack's C functions", allow_module_level=True)

# By op, its function and arguments that are right.
CALLS: dict[Any, tuple[Any, dict[str, Any]]] = {
    ALIGN: (
        tessera.align_block_size,
        {
            "topk_ids": IDS,
            "block_size": 2,
            "num_experts": 4,
            "expert_map": MAP,
            "ignore_invalid_experts": True,
            "pad_sorted_ids": True,
            "tail_expert": 7,
            "expert_counts": torch.zeros(4, dtype=torch.int32),
            "num_dropped": torch.zeros(1, dtype=torch.int32),
            "statistics": None,
            "map_tail": True,
            "filtered_group": True,
            "validate": False,
            "num_threads": None,
        },
    ),
    BATCHED_OP: (
        tessera.batched_align_block_size,
        {
            "expert_num_tokens": torch.tensor([2, 0, 3], dtype=torch.int32),
            "max_tokens_per_batch": 2,
            "block_size": 2,
            "tail_expert": 3,
        },
    ),
    LORA_OP: (
        tessera.lora_align_block_size,
        {
            "topk_ids": IDS,
            "token_lora_mapping": torch.tensor([0, -1, 0], dtype=torch.int32),
            "block_size": 2,
            "num_experts": 4,
            "max_loras": 1,
            "adapter_enabled": torch.ones(1, dtype=torch.int32),
            "lora_ids": torch.zeros(1, dtype=torch.int32),
            "expert_map": MAP,
            "pad_sorted_ids": True,
            "tail_expert": 2,
        },
    ),
    SELECT_OP: (
        tessera.select_experts,
        {
            "router_logits": LOGITS,
            "top_k": 2,
            "scoring": "sigmoid",
            "renormalize": True,
            "correction_bias": torch.linspace(0, 1, 8),
            "num_expert_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 1.5,
            "num_valid_tokens": torch.tensor([2], dtype=torch.int32),
            "num_threads": 1,
        },
    ),
    ALIGNED_OP: (
        tessera.select_and_align,
        {
            "router_logits": LOGITS,
            "top_k": 2,
            "block_size": 2,
            "renormalize": True,
            "expert_map": torch.arange(8, dtype=torch.int32).flip(0),
            "ignore_invalid_experts": True,
            "pad_sorted_ids": True,
            "expert_counts": torch.zeros(8, dtype=torch.int32),
            "statistics": None,
            "num_threads": None,
        },
    ),
    SUM_OP: (
        tessera.moe_sum,
        {
            "input": LOGITS.reshape(3, 2, 4),
            "topk_weights": torch.linspace(0, 1, 6).reshape(3, 2),
            "num_threads": 1,
        },
    ),
}
# Longer than they have to be; of other ops as new outputs are.
OUTPUTS: dict[Any, list[Any]] = {
    ALIGN: [torch.full((length,), -77, dtype=torch.int32) for length in (12, 8, 1)],
    BATCHED_OP: [torch.full((length,), -77, dtype=torch.int32) for length in (12, 8, 1)],
    LORA_OP: [torch.full((1, length), -77, dtype=torch.int32) for length in (12, 8, 1)],
}


class Subclass(torch.Tensor):  # type: ignore[misc]
    """Not known until a call was given one."""


def odd_values() -> list[Any]:
    """Values that an argument may or may not take, with memory of their own."""
    floats = LOGITS.clone()

    def int32() -> Any:
        return torch.arange(4, dtype=torch.int32)

    return [
        *(None, -1, 0, 1, 3, 0.5, 2.0, float("nan"), "a", "softmax", True, False, object()),
        *(2**31, 2**63, -(2**63), 2**65, (1, 2), [1]),
        *(np.int64(2), np.bool_(True), np.float32(1), np.array(2)),
        *(np.zeros(4, np.int32), np.zeros(8, np.float32)),
        *(torch.tensor(2), torch.zeros(4), int32(), int32().long(), int32().to(torch.uint8)),
        *(int32().bool(), int32()[:0], int32().reshape(2, 2), int32()[::2], int32().to("meta")),
        *(torch.ones(4, dtype=torch.complex64).conj().imag, int32().as_subclass(Subclass)),
        torch.nn.Parameter(int32(), requires_grad=False),
        *(floats, floats.bfloat16(), floats.double(), floats.int(), floats[:, ::2], floats[:0]),
        *(floats.to("meta"), floats.to(torch.complex64).conj().imag, floats.as_subclass(Subclass)),
        *(floats[0], floats[0].int(), floats.reshape(3, 2, 4), floats.clone().requires_grad_()),
        *(torch.nn.Parameter(floats, requires_grad=False), floats.to_sparse()),
        *(torch._neg_view(floats.int()), torch._neg_view(floats)),
    ]


def copy_of(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    is_plain = type(value) is torch.Tensor and value.is_cpu and value.layout is torch.strided
    return value.clone() if is_plain and value.is_contiguous() and not value.is_neg() else value


def contents(values: tuple[Any, ...]) -> list[Any]:
    """The types, data types and elements of tensors, as text, since NaNs do not compare."""
    return [
        (type(one), one.dtype, str(one.tolist()))
        for one in values
        if isinstance(one, torch.Tensor) and one.is_cpu and one.layout is torch.strided
    ]


def result_of(function: Any, arguments: dict[str, Any], out: Any) -> Any:
    """What a call returns or raises, and what it writes to copies of these arrays."""
    arguments = {name: copy_of(value) for name, value in arguments.items()}
    outputs = () if out is None else tuple(map(copy_of, out))
    given = None if out is None else outputs if len(outputs) > 1 else outputs[0]
    try:
        result = function(**arguments, out=given)
    except Exception as error:
        found: Any = f"{type(error).__name__}: {re.sub('0x[0-9a-f]+', '', str(error))}"
    else:
        assert given is None or result is given
        parts = result if isinstance(result, tuple) else (result,)
        found = (type(result), contents(parts))
    return found, contents((*arguments.values(), *outputs))


@pytest.mark.parametrize("op", CALLS, ids=lambda op: op.name)
@pytest.mark.parametrize("is_new", [False, True])
def test_any_value_of_any_argument(op: Any, is_new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    function, right = CALLS[op]
    made = function(**right)
    outputs = OUTPUTS.get(op) or (list(made) if isinstance(made, tuple) else [made])

    def results() -> list[Any]:
        given = None if is_new else outputs
        found = [result_of(function, right, given)]
        for number in range(len(odd_values())):
            for argument in right:
                found.append(result_of(function, {**right, argument: odd_values()[number]}, given))
            for place in range(0 if is_new else len(outputs)):
                changed = [*outputs]
                changed[place] = odd_values()[number]
                found.append(result_of(function, right, changed))
        return found

    found = results()
    monkeypatch.setattr(op, "direct", lambda *arguments: None)
    assert found == results()
    assert isinstance(found[0][0], tuple)
