"""`fused_experts` with torch: compiled, traced, by shape alone, and beside autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tessera
from fused_experts_calls import ARRAYS, assert_near_model, call, transposed

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

FLOAT_ARRAYS = [name for name in ARRAYS if name not in ("topk_ids", "expert_map")]


def tensors(seed: int = 0, **options: Any) -> dict[str, Any]:
    arguments = call(seed, biases=True, **options)
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }


# Every argument that a graph may have beside the arrays of `tensors`.
FULL: dict[str, Any] = {
    "activation": "swigluoai",
    "expert_map": torch.tensor([1, 3, -1, 0], dtype=torch.int32),
    "swiglu_alpha": 0.5,
    "swiglu_beta": -1.0,
    "swiglu_limit": 2.0,
    "apply_router_weight_on_input": True,
    "batch_invariant": True,
    "num_threads": 1,
}


def full(seed: int = 0, tokens: int = 5) -> dict[str, Any]:
    return tensors(seed, tokens=tokens, top_k=1, activation="swigluoai") | FULL


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("make", [tensors, full])
def test_compiled(make: Any, dynamic: bool) -> None:
    arguments = make()
    options = {name: value for name, value in arguments.items() if name not in ARRAYS[:5]}

    def layer(*arrays: Any) -> Any:
        out = arrays[0].new_empty(arrays[0].shape)
        tessera.fused_experts(*arrays, **options, out=out)
        named = dict(zip(ARRAYS, arrays, strict=False))
        return tessera.fused_experts(**named, **options) + out

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for tokens in (5, 8):
        given = make(1, tokens=tokens)
        found = compiled(*(given[name] for name in ARRAYS[:5]))
        assert torch.equal(found, 2 * tessera.fused_experts(**given | options))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("make", [tensors, full])
def test_the_op_of_torch(make: Any, dtype: str) -> None:
    import tessera.torch_ops

    arguments = make()
    for name in FLOAT_ARRAYS:
        arguments[name] = arguments[name].to(getattr(torch, dtype))
    op = torch.ops.tessera.fused_experts
    expected = tessera.fused_experts(**arguments)
    assert torch.equal(op(**arguments), expected)
    out = torch.empty_like(expected)
    assert op.out(**arguments, output=out) is None
    assert torch.equal(out, expected)
    torch.library.opcheck(op.default, (), arguments)
    torch.library.opcheck(op.out, (), arguments | {"output": out})


@pytest.mark.parametrize("tokens", [0, 5])
def test_shapes_without_values(tokens: int) -> None:
    arguments = tensors(tokens=tokens, dtype="float16")
    with FakeTensorMode() as mode:
        fakes = {
            name: mode.from_tensor(value) if name in ARRAYS else value
            for name, value in arguments.items()
        }
        found = tessera.fused_experts(**fakes)
    assert (tuple(found.shape), found.dtype) == ((tokens, 6), torch.float16)
    assert found.is_contiguous()


def test_the_number_of_tokens_may_be_a_symbol() -> None:
    def layer(x: Any, topk_weights: Any, topk_ids: Any) -> Any:
        given = {"x": x, "topk_weights": topk_weights, "topk_ids": topk_ids}
        return tessera.fused_experts(**tensors() | given)

    names = ("x", "topk_weights", "topk_ids")
    first = tensors()
    traced = make_fx(layer, tracing_mode="symbolic")(*(first[name] for name in names))
    assert "tessera.fused_experts" in traced.code
    other = tensors(1, tokens=9)
    arrays = [other[name] for name in names]
    assert torch.equal(traced(*arrays), layer(*arrays))


def test_outputs_of_a_view_are_contiguous() -> None:
    wide = torch.from_numpy(call()["x"]).repeat(1, 2)
    found = tessera.fused_experts(**tensors() | {"x": wide[:, :6]})
    assert found.is_contiguous()
    assert torch.equal(found, tessera.fused_experts(**tensors()))


def test_transposed_weights() -> None:
    arguments = call(3)
    moved = {
        name: torch.from_numpy(transposed(arguments[name]).swapaxes(1, 2)).mT
        for name in ("w13", "w2")
    }
    rest = {name: torch.from_numpy(arguments[name]) for name in ("x", "topk_weights", "topk_ids")}
    found = tessera.fused_experts(**moved, **rest)
    assert not moved["w13"].is_contiguous()
    assert_near_model(found, "float32", arguments)


@pytest.mark.parametrize("name", [*FLOAT_ARRAYS, "out"])
@pytest.mark.parametrize("compiled", [False, True])
def test_autograd_does_not_follow(name: str, compiled: bool) -> None:
    arguments = tensors()
    if name == "out":
        arguments["out"] = torch.ones(5, 6, requires_grad=True)
    else:
        arguments[name] = torch.nn.Parameter(arguments[name])

    def function(**given: Any) -> Any:
        return tessera.fused_experts(**given)

    error: type[Exception] = ValueError
    if compiled:
        if name == "out":
            pytest.skip("torch itself refuses to write to such a tensor")
        torch.compiler.reset()  # each test is one more graph of the same function
        function = torch.compile(function, backend="eager", fullgraph=True)
        error = torch._dynamo.exc.TorchRuntimeError
    with pytest.raises(error, match=f"fused_experts: {name}: expected a tensor that autograd"):
        function(**arguments)
    if name != "out":
        expected = tessera.fused_experts(**tensors())
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert torch.equal(function(**arguments), expected)


def test_a_module_in_eval_under_no_grad() -> None:
    class Experts(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            given = tensors()
            self.w13, self.w2 = (torch.nn.Parameter(given[name]) for name in ("w13", "w2"))

        def forward(self, x: Any, topk_weights: Any, topk_ids: Any) -> Any:
            return tessera.fused_experts(x, self.w13, self.w2, topk_weights, topk_ids)

    experts, given = Experts(), call()
    arrays = [torch.from_numpy(given[name]) for name in ("x", "topk_weights", "topk_ids")]
    with torch.no_grad():
        assert_near_model(experts(*arrays), "float32", given)
    with pytest.raises(ValueError, match=r"^fused_experts: w13: .* under torch.no_grad\(\) any"):
        experts(*arrays)
