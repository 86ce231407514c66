"""vLLM's own compiled router and row ops beside those that Tessera serves in their place."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tessera.vllm  # noqa: E402

TOPK_OPS = ("topk_softmax", "topk_sigmoid", "topk_hash_softplus_sqrt")
PERMUTE = "vllm.model_executor.layers.fused_moe.moe_permute_unpermute"


@pytest.fixture
def custom_ops() -> Iterator[ModuleType]:
    try:
        module = importlib.import_module("vllm._custom_ops")
    except ImportError as error:
        pytest.skip(f"vllm._custom_ops cannot be imported: {error}")
    tessera.vllm.uninstall()
    yield module
    tessera.vllm.uninstall()


def random(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)


def both(call: Callable[[], Any]) -> tuple[Any, Any]:
    """The results of a call over vLLM's own functions, then over Tessera's."""
    expected = call()
    tessera.vllm.install()
    found = call()
    tessera.vllm.uninstall()
    return found, expected


def assert_same_choices(found: Any, expected: Any, choice: Any) -> None:
    """Weights are close; the few other ids, of another rounding, are of scores that are close."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=2e-6)
    mine, its = found[1].long(), expected[1].long()
    other = mine != its
    assert other.float().mean() < 2e-3
    torch.testing.assert_close(
        choice.gather(1, mine)[other], choice.gather(1, its)[other], rtol=1e-5, atol=2e-6
    )
    for my_output, its_output in zip(found[2:], expected[2:], strict=True):
        assert torch.equal(my_output, its_output)


def scores_of(name: str, logits: Any) -> Any:
    exact = logits.double()
    if name == "topk_softmax":
        return exact.softmax(-1)
    return exact.sigmoid() if name == "topk_sigmoid" else torch.log1p(exact.exp()).sqrt()


@pytest.mark.parametrize("num_experts", [8, 64, 128, 160, 256, 384])
@pytest.mark.parametrize("name", TOPK_OPS)
def test_topk_ops(custom_ops: ModuleType, name: str, num_experts: int) -> None:
    op = getattr(custom_ops, name, None)
    if op is None or (name == TOPK_OPS[2] and num_experts in (8, 64, 160)):
        pytest.skip(f"this vLLM has no {name} for {num_experts} experts")
    top_k = 6 if num_experts > 8 else 2
    for num_tokens in (1, 33, 2048):
        for dtype in (torch.float32, torch.bfloat16):
            for renormalize in (False, True):
                for bias in (None, random(num_experts, seed=1).abs()):
                    logits = random(num_tokens, num_experts, dtype=dtype)

                    def call(
                        logits: Any = logits, renormalize: bool = renormalize, bias: Any = bias
                    ) -> Any:
                        shape = (len(logits), top_k)
                        outputs = tuple(
                            torch.empty(shape, dtype=type_, device="cuda")
                            for type_ in (torch.float32, torch.int32, torch.int32)
                        )
                        options = {} if bias is None else {"e_score_correction_bias": bias}
                        getattr(custom_ops, name)(
                            *outputs, logits, renormalize=renormalize, **options
                        )
                        return outputs

                    choice = scores_of(name, logits)
                    choice = choice if bias is None else choice + bias
                    assert_same_choices(*both(call), choice)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("num_experts", "num_groups"), [(256, 8), (64, 1), (160, 5)])
def test_grouped_topk_op(
    custom_ops: ModuleType, num_experts: int, num_groups: int, renormalize: bool
) -> None:
    logits, bias = random(1024, num_experts), random(num_experts, seed=1).abs()
    stay = max(num_groups // 2, 1)

    def call() -> Any:
        return custom_ops.grouped_topk(
            logits, num_groups, stay, 6, renormalize, 2.5, bias, scoring_func=1
        )

    assert_same_choices(*both(call), logits.double().sigmoid() + bias)


@pytest.mark.parametrize("top_k", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moe_sum(custom_ops: ModuleType, dtype: Any, top_k: int) -> None:
    rows = random(65, top_k, 2048, dtype=dtype)

    def call() -> Any:
        output = torch.empty((65, 2048), dtype=dtype, device="cuda")
        custom_ops.moe_sum(rows, output)
        return output

    found, expected = both(call)
    # vLLM rounds after each slot for up to 4 slots.
    tolerance = {"rtol": 2e-2, "atol": 6e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 77])
def test_permute_and_unpermute(custom_ops: ModuleType, num_tokens: int, mapped: bool) -> None:
    module = importlib.import_module(PERMUTE)
    if not hasattr(module, "moe_permute"):
        pytest.skip("this vLLM has no moe_permute")
    x = random(num_tokens, 256, dtype=torch.bfloat16)
    logits, weights = random(num_tokens, 32, seed=2), random(num_tokens, 4, seed=3)
    ids = logits.topk(4)[1].int()
    options: dict[str, Any] = {}
    if mapped:
        expert_map = torch.full((32,), -1, dtype=torch.int32, device="cuda")
        expert_map[8:24] = torch.arange(16, dtype=torch.int32, device="cuda")
        options = {"n_local_expert": 16, "expert_map": expert_map}

    def call() -> Any:
        rows, _, offsets, inverse, last = module.moe_permute(x, None, ids, 32, **options)
        output = torch.empty_like(x)
        module.moe_unpermute(output, rows, weights, inverse, offsets if mapped else None)
        return rows, offsets, inverse, last, output

    found, expected = both(call)
    used = int(expected[1][-1])
    assert torch.equal(found[0][:used], expected[0][:used])
    assert torch.equal(found[1], expected[1])
    here = expected[2] < used
    assert torch.equal(found[2][here], expected[2][here])
    assert (found[2][~here] >= used).all()
    assert torch.equal(found[3], expected[3])
    torch.testing.assert_close(found[4], expected[4])


def test_a_graph_captures_what_is_served(custom_ops: ModuleType) -> None:
    logits = random(64, 128)
    outputs = tuple(
        torch.empty((64, 8), dtype=dtype, device="cuda")
        for dtype in (torch.float32, torch.int64, torch.int32)
    )
    tessera.vllm.install()
    custom_ops.topk_softmax(*outputs, logits, renormalize=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        custom_ops.topk_softmax(*outputs, logits, renormalize=True)
    logits.copy_(random(64, 128, seed=9))
    graph.replay()
    expected = logits.softmax(-1).topk(8)
    assert torch.equal(outputs[1], expected[1])
    torch.testing.assert_close(outputs[0], expected[0] / expected[0].sum(-1, keepdim=True))
