"""`select_experts` with tensors of torch: eager calls, compiled code, `torch.ops`."""

from __future__ import annotations

from typing import Any

import pytest

import tessera
from select_experts_calls import BEST_TWO, LOGITS, random_call, violations

torch = pytest.importorskip("torch", reason="torch is not installed")

FLOATS = ["float16", "bfloat16", "float32"]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_out", [False, True])
def test_torch(dtype: str, with_out: bool) -> None:
    logits = torch.from_numpy(LOGITS).to(getattr(torch, dtype))
    out = (torch.full((3, 2), 99.0), torch.full((3, 2), 99).int()) if with_out else None
    found = tessera.select_experts(logits, top_k=2, out=out)
    assert found is out or not with_out
    weights, ids = found
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    assert ids.tolist() == BEST_TWO
    expected = tessera.select_experts(LOGITS, top_k=2)  # all logits are numbers of every type
    assert weights.numpy().tobytes() == expected.topk_weights.tobytes()
    assert violations(logits, found, top_k=2) == []


def test_arrays_of_another_device() -> None:
    logits = torch.from_numpy(LOGITS)
    refused = r"^select_experts: correction_bias: expected an array that DLPack can carry, got Ten"
    with pytest.raises(TypeError, match=refused):
        tessera.select_experts(logits, top_k=2, correction_bias=torch.zeros(4, device="meta"))
    refused = r"^select_experts: router_logits: expected an array that DLPack can carry, got Tensor"
    with pytest.raises(TypeError, match=refused):
        tessera.select_experts(logits.to("meta"), top_k=2)


@pytest.mark.parametrize("name", ["router_logits", "correction_bias", "topk_weights"])
@pytest.mark.parametrize("compiled", [False, True])
def test_autograd_does_not_follow(name: str, compiled: bool) -> None:
    arrays: dict[str, Any] = {
        "router_logits": torch.from_numpy(LOGITS.copy()),
        "correction_bias": torch.zeros(4),
    }
    if name == "topk_weights":
        arrays["out"] = (torch.ones(3, 2, requires_grad=True), torch.ones(3, 2).int())
    else:
        arrays[name].requires_grad_()

    arrays |= {"top_k": 2, "scoring": "sigmoid"}
    op = tessera.select_experts
    function = torch.compile(op, backend="eager") if compiled else op
    if compiled and name == "topk_weights":
        pytest.skip("torch itself refuses to write to such a tensor")
    with pytest.raises(ValueError, match=f"^select_experts: {name}: expected a tensor that autogr"):
        function(**arrays)
    if name != "topk_weights":
        with torch.no_grad():
            assert function(**arrays)[1].tolist() == BEST_TWO


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("groups", [{}, {"num_expert_group": 6, "topk_group": 2}])
def test_compiled(dynamic: bool, groups: dict[str, int]) -> None:
    logits, options = random_call(2, scoring="sigmoid", correction_bias=True, **groups)
    tensors = torch.from_numpy(logits), torch.from_numpy(options.pop("correction_bias"))

    def layer(logits: Any, bias: Any) -> Any:
        found = tessera.select_experts(logits, **options, correction_bias=bias)
        assert isinstance(found, tessera.SelectedExperts)
        out = (logits.new_empty(len(logits), 4), logits.new_empty(len(logits), 4).int())
        tessera.select_experts(logits, **options, correction_bias=bias, out=out)
        return (*found, *out)

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for num_tokens in (40, 17):
        eager = layer(tensors[0][:num_tokens], tensors[1])
        found = compiled(tensors[0][:num_tokens], tensors[1])
        assert all(map(torch.equal, found, eager))
        assert all(map(torch.equal, found[:2], found[2:]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_op_of_torch(dtype: str) -> None:
    import tessera.torch_ops

    logits = torch.from_numpy(LOGITS).to(getattr(torch, dtype))
    op = torch.ops.tessera.select_experts
    found = op(logits, 2, "sigmoid", True, torch.zeros(4), 2, None, 2.5)
    expected = tessera.select_experts(
        logits,
        top_k=2,
        scoring="sigmoid",
        renormalize=True,
        correction_bias=torch.zeros(4),
        num_expert_group=2,
        routed_scaling_factor=2.5,
    )
    assert all(map(torch.equal, found, expected))
    torch.library.opcheck(op.default, (logits, 2))
    torch.library.opcheck(op.default, (logits, 2, "sigmoid", False, torch.zeros(4), 2, 1))
    outputs = {"topk_weights": torch.empty(3, 2), "topk_ids": torch.empty(3, 2).int()}
    torch.library.opcheck(op.out, (logits, 2), outputs)


@pytest.mark.filterwarnings("ignore")
def test_a_single_output_while_torch_traces() -> None:
    expected = r"^select_experts: out: expected a tuple of two arrays, got Tensor$"
    with pytest.raises(TypeError, match=expected):
        torch.jit.trace(
            lambda x: tessera.select_experts(x, top_k=2, out=torch.empty(3, 2)),
            torch.from_numpy(LOGITS),
        )


def test_outputs_without_tokens_have_the_strides_of_torch() -> None:
    selected = tessera.select_experts(torch.empty(0, 16), top_k=2)
    assert [array.stride() for array in selected] == [torch.empty(0, 2).stride()] * 2
