"""Models of transformers over Tessera: logits, greedy tokens, and graphs of torch.compile."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import tessera.transformers  # noqa: E402
from tiny_models import (  # noqa: E402
    MULTIPLE,
    NAMES,
    NUM_MOE_LAYERS,
    exact_logits,
    experts_of,
    logits,
    prompts,
    tiny_model,
)

ACTIVATIONS = {"gpt_oss": "swigluoai", "nemotron_h": "relu2_no_mul"}


def eager(model: Any, ids: Any) -> Any:
    model.set_experts_implementation("eager")
    result = logits(model, ids)
    model.set_experts_implementation("tessera")
    return result


@pytest.mark.parametrize("name", NAMES)
def test_one_call_for_each_layer(name: str, calls: list[dict[str, Any]]) -> None:
    model = tiny_model(name)
    report = tessera.transformers.report(model)
    assert list(report.values()) == ["served"] * NUM_MOE_LAYERS
    modules = dict(model.named_modules())
    assert [modules[key] for key in report] == experts_of(model)
    for forwards in (1, 2):
        logits(model, prompts())
        assert len(calls) == forwards * NUM_MOE_LAYERS
    for call in calls:
        assert call["activation"] == ACTIVATIONS.get(name, "silu")
        assert call["args"][4].dtype == torch.int64
        for bias in (call["w13_bias"], call["w2_bias"]):
            assert (bias is not None and bool(bias.any())) == (name == "gpt_oss")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_logits(name: str, dtype: Any) -> None:
    """Errors of a token's logits are compared at the median of all tokens.

    A rounding can choose another expert for a token, which then tells nothing; in bfloat16 this
    happens to a few tokens, with either implementation.
    """
    model, ids = tiny_model(name, dtype=dtype), prompts()
    exact = exact_logits(model, ids)
    assert exact.dtype == torch.float64
    error = logits(model, ids).double() - exact
    eager_error = eager(model, ids).double() - exact
    rounding = torch.finfo(dtype).eps / 2 * exact.abs().max()
    assert eager_error.abs().max() > 0
    median, eager_median = (one.norm(dim=-1).median() for one in (error, eager_error))
    assert median <= MULTIPLE * eager_median
    if dtype == torch.float32:
        assert error.abs().max() <= MULTIPLE * eager_error.abs().max() + rounding


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens(name: str, calls: list[dict[str, Any]]) -> None:
    """Where the best logit leads by more than twice the difference bound, both choose its token."""
    model, ids = tiny_model(name), prompts()
    tokens = model.generate(ids, max_new_tokens=32, do_sample=False, use_cache=True)
    assert len(calls) == 32 * NUM_MOE_LAYERS
    assert tokens.shape == (3, 20 + 32)
    expected = eager(model, tokens)[:, 19:-1]
    eager_error = (expected - exact_logits(model, tokens)[:, 19:-1]).abs().max()
    best = expected.topk(2, dim=-1)
    decided = best.values[..., 0] - best.values[..., 1] > 2 * (MULTIPLE + 1) * eager_error
    assert decided.float().mean() > 0.9
    assert torch.equal(best.indices[..., 0][decided], tokens[:, 20:][decided])


@pytest.mark.parametrize("name", NAMES)
def test_compiled_forward_is_one_graph_with_the_same_bits(name: str) -> None:
    model = tiny_model(name)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(logits(compiled, prompts()), logits(model, prompts()))


# torch itself calls it when it imports Inductor.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_form_is_found_while_a_first_call_is_compiled() -> None:
    """Inductor's code calls the op; alpha and limit of the module reach it."""
    experts = experts_of(tiny_model("gpt_oss"))[0]
    x, weights, ids = torch.randn(5, 64), torch.rand(5, 3), torch.randint(0, 8, (5, 3))
    torch.compiler.reset()
    with torch.no_grad():
        found = torch.compile(experts, fullgraph=True)(x, ids, weights)
        assert torch.equal(found, experts(x, ids, weights))


def test_compiled_code_is_not_shared_by_modules_of_other_forms() -> None:
    """Both modules run the same code; their limits differ."""
    x, weights, ids = 9 * torch.randn(5, 64), torch.rand(5, 3), torch.randint(0, 8, (5, 3))
    torch.compiler.reset()
    found = []
    for limit in (7.0, 0.01):
        experts = experts_of(tiny_model("gpt_oss"))[0]
        experts.limit = limit
        with torch.no_grad():
            found.append(torch.compile(experts, fullgraph=True, backend="eager")(x, ids, weights))
            assert torch.equal(found[-1], experts(x, ids, weights))
    assert not torch.equal(*found)


def test_constants_of_graphs_are_found_from_numbers_strings_and_data_types(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Newer releases of torch would pass on modules too; torch 2.11 and older fail."""
    from tessera.transformers import experts, forms

    given: list[Any] = []

    def recording(function: Any) -> Any:
        def call(*args: Any) -> Any:
            given.extend(args)
            return function(*args)

        return forms.constant_in_graphs(call)

    for module in (experts, forms):
        for name, value in list(vars(module).items()):
            if getattr(value, "_dynamo_marked_constant", False):
                monkeypatch.setattr(module, name, recording(value))
    layer = experts_of(tiny_model("mixtral"))[0]
    x, weights, ids = torch.randn(5, 64), torch.rand(5, 2), torch.randint(0, 4, (5, 2))
    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(layer, fullgraph=True, backend="eager")(x, ids, weights)
    assert {type(one) for one in given} == {int, str, torch.dtype}


def test_compiled_generation() -> None:
    model, ids = tiny_model("qwen3_moe"), prompts()
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)
    torch.compiler.reset()
    model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    found = model.generate(ids, max_new_tokens=4, do_sample=False, cache_implementation="static")
    assert torch.equal(found, expected)


def test_loaded_model(tmp_path: Any) -> None:
    """As users do it: `experts_implementation` of `from_pretrained`."""
    from transformers import AutoModelForCausalLM

    model, ids = tiny_model("mixtral"), prompts()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="tessera")
    assert set(tessera.transformers.report(loaded).values()) == {"served"}
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@pytest.mark.parametrize("model", [None, "gpt2", tiny_model])
def test_a_report_on_what_is_no_module(model: Any) -> None:
    got = type(model).__name__
    with pytest.raises(TypeError) as caught:
        tessera.transformers.report(model)
    assert str(caught.value) == (
        f"tessera.transformers.report: model: expected a torch.nn.Module, got {got}"
    )
