"""Tensors with a tangent of forward-mode autograd: refused, as the result would have none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tessera
from fused_experts_calls import call

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.autograd import forward_ad  # noqa: E402

# Of torch's own code, at the first dual tensor.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

REFUSED = (
    "expected a tensor that autograd does not follow, got one with a tangent (the primal of its "
    "torch.autograd.forward_ad.unpack_dual() has none)"
)


def arguments_of(op: str) -> dict[str, Any]:
    if op == "moe_sum":
        return {"input": torch.ones(4, 2, 3), "topk_weights": torch.ones(4, 2)}
    if op in ("select_experts", "select_and_align"):
        bias = torch.zeros(4)
        blocks = {"block_size": 2} if op == "select_and_align" else {}
        return {"router_logits": torch.ones(3, 4), "top_k": 2, "correction_bias": bias} | blocks
    arrays = {"x", "w13", "w2", "topk_weights", "topk_ids", "w13_bias", "w2_bias"}
    given = call(biases=True)
    if op == "fused_moe":
        del given["topk_weights"], given["topk_ids"]
        logits, bias, weights = torch.zeros(5, 4), torch.zeros(4), torch.zeros(5, 2)
        given |= {"router_logits": logits, "top_k": 2, "correction_bias": bias}
        given |= {"topk_weights": weights}
        arrays.discard("topk_weights")
    return {
        name: torch.from_numpy(value) if name in arrays else value for name, value in given.items()
    }


def dual(tensor: Any) -> Any:
    return forward_ad.make_dual(tensor, torch.ones_like(tensor))


OF_OPS = [
    *(("moe_sum", name) for name in ("input", "topk_weights", "out")),
    *(("select_experts", name) for name in ("router_logits", "correction_bias")),
    *(("select_and_align", name) for name in ("router_logits", "correction_bias")),
    *(
        ("fused_experts", name)
        for name in ("x", "w13", "w2", "topk_weights", "w13_bias", "w2_bias", "out")
    ),
    *(
        ("fused_moe", name)
        for name in ("x", "router_logits", "correction_bias", "w2_bias", "out", "topk_weights")
    ),
]


@pytest.mark.parametrize(("op", "name"), OF_OPS)
def test_each_array_of_floats(op: str, name: str) -> None:
    op_function = getattr(tessera, op)

    def function(**arguments: Any) -> Any:
        found = op_function(**arguments)
        return found[0] if isinstance(found, tuple) else found

    given = arguments_of(op)
    expected = function(**given)
    with forward_ad.dual_level():
        assert torch.equal(function(**given), expected)
        tensor = torch.full_like(expected, 99) if name == "out" else given[name]
        for mode in (torch.enable_grad, torch.no_grad):
            with mode(), pytest.raises(ValueError) as caught:
                function(**given | {name: dual(tensor)})
            assert str(caught.value) == f"{op}: {name}: {REFUSED}"
        if name == "out":
            assert torch.equal(tensor, torch.full_like(expected, 99))
        with torch.inference_mode():  # as all of torch, without tangents
            assert torch.equal(function(**given | {name: dual(tensor)}), expected)
    assert torch.equal(function(**given), expected)


def test_an_output_beside_arrays_of_numpy() -> None:
    values: Any = np.ones((4, 2, 3), np.float32)
    found = torch.zeros(4, 3)
    tessera.moe_sum(values, out=found)
    assert found.tolist() == [[2] * 3] * 4
    with forward_ad.dual_level():
        with pytest.raises(ValueError) as caught:
            tessera.moe_sum(values, out=dual(found))
        assert str(caught.value) == f"moe_sum: out: {REFUSED}"
        assert tessera.moe_sum(values).tolist() == [[2] * 3] * 4


def test_statistics() -> None:
    ids = torch.ones(4, 2, dtype=torch.int32)
    with forward_ad.dual_level():
        statistics = dual(torch.zeros(6, dtype=torch.float64))
        with pytest.raises(ValueError) as caught:
            tessera.align_block_size(ids, block_size=4, num_experts=4, statistics=statistics)
    assert str(caught.value) == f"align_block_size: statistics: {REFUSED}"


def test_functions_of_torch_func() -> None:
    values = torch.ones(4, 2, 3)
    with pytest.raises(ValueError, match=r"^moe_sum: input: expected a tensor that autograd"):
        torch.func.jvp(tessera.moe_sum, (values,), (values,))


@pytest.mark.filterwarnings("ignore")  # Dynamo says why it leaves code to Python
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("direct", [True, False])
def test_compiled(backend: str, direct: bool) -> None:
    torch.compiler.reset()
    function = tessera.moe_sum if direct else lambda values: tessera.moe_sum(values)
    compiled = torch.compile(function, backend=backend)
    values = torch.ones(4, 2, 3)
    with forward_ad.dual_level():
        with pytest.raises(ValueError, match=r"^moe_sum: input: .* got one with a tangent"):
            compiled(dual(values))
        assert compiled(values).tolist() == [[2] * 3] * 4


def test_the_op_of_torch() -> None:
    import tessera.torch_ops  # noqa: F401 (registers the op)

    values = torch.ones(4, 2, 3)
    with forward_ad.dual_level():
        with pytest.raises(ValueError, match=r"^moe_sum: input: .* got one with a tangent"):
            torch.ops.tessera.moe_sum(dual(values))
        assert torch.ops.tessera.moe_sum(values).tolist() == [[2] * 3] * 4
