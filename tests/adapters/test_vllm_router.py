"""vLLM's router ops and functions over Tessera, on stand-ins for its generations."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import engine_ops  # noqa: E402
import engine_router  # noqa: E402
import tessera.vllm  # noqa: E402
from engine_packages import STANDINS  # noqa: E402
from tessera.vllm import router  # noqa: E402
from tessera.vllm.generations import generation_of  # noqa: E402

VERSIONS = ["0.9.2", "0.12.0", "0.24.0", "0.33.0"]
OPS = ["topk_softmax", "topk_sigmoid", "topk_hash_softplus_sqrt"]
FUSED_MOE = "vllm.model_executor.layers.fused_moe"
T, E, K = 17, 24, 5

UseEngine = Callable[[Path], None]


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, use_engine: UseEngine) -> str:
    name = str(request.param)
    use_engine(STANDINS / f"vllm-{name}")
    return name


@pytest.fixture
def newest(use_engine: UseEngine) -> str:
    use_engine(STANDINS / "vllm-0.33.0")
    return "0.33.0"


def custom_ops() -> ModuleType:
    return importlib.import_module("vllm._custom_ops")


def module_of(version: str, name: str) -> ModuleType:
    """The module that defines one of vLLM's Python functions."""
    if name.startswith("moe_"):
        return importlib.import_module(f"{FUSED_MOE}.moe_permute_unpermute")
    if version in ("0.9.2", "0.12.0"):
        return importlib.import_module(f"{FUSED_MOE}.fused_moe")
    return importlib.import_module(f"{FUSED_MOE}.router.{name}_router")


def random(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def buffers(ids_type: Any = torch.int32, num_tokens: int = T) -> tuple[Any, Any, Any]:
    weights = torch.full((num_tokens, K), 7.0)
    return weights, torch.full((num_tokens, K), 77, dtype=torch.int64).to(ids_type), weights.int()


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def assert_chosen(found: Any, expected: Any) -> None:
    """Compare ids exactly and weights closely; other outputs exactly."""
    torch.testing.assert_close(found[0], expected[0], rtol=2e-6, atol=1e-7)
    assert [each.dtype for each in found] == [each.dtype for each in expected]
    for mine, its in zip(found[1:], expected[1:], strict=True):
        assert mine.tolist() == its.tolist()


def assert_serves(calls: list[Callable[[], Any]]) -> None:
    """Make each call over vLLM's own function, then over Tessera's, and compare."""
    expected = [call() for call in calls]
    assert engine_ops.calls
    tessera.vllm.install()
    engine_ops.calls.clear()
    for call, results in zip(calls, expected, strict=True):
        assert_chosen(call(), results)
    assert engine_ops.calls == []


def combinations(**choices: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


@pytest.mark.parametrize("name", OPS)
def test_ops_choose_the_same(version: str, name: str) -> None:
    if not hasattr(custom_ops(), name):
        pytest.skip(f"vLLM {version} has no {name}")
    known = parameters(getattr(custom_ops(), name))

    def call(logits_type: Any, ids_type: Any, options: dict[str, Any]) -> Any:
        found = buffers(ids_type)
        getattr(custom_ops(), name)(*found, random(T, E, dtype=logits_type), **options)
        return found

    choices = {
        "renormalize": (False, True),
        "e_score_correction_bias": (None, random(E, seed=1)),
        "routed_scaling_factor": (1.0, 2.5),
    }
    assert_serves(
        [
            functools.partial(call, logits_type, ids_type, options)
            for options in combinations(**{key: choices[key] for key in choices if key in known})
            for logits_type in (torch.float32, torch.bfloat16, torch.float16)
            for ids_type in (torch.int32, torch.int64, torch.uint32)
        ]
    )


def test_grouped_op_chooses_the_same(version: str) -> None:
    if not hasattr(custom_ops(), "grouped_topk"):
        pytest.skip(f"vLLM {version} has no op grouped_topk")
    bias = random(E, seed=1, dtype=torch.bfloat16)

    def call(renormalize: bool, num_groups: int) -> Any:
        stay = min(num_groups, 2)
        return custom_ops().grouped_topk(
            random(T, E), num_groups, stay, K, renormalize, 2.5, bias, 1
        )

    options = combinations(renormalize=(False, True), num_groups=(1, 4))
    assert_serves([functools.partial(call, **each) for each in options])


def test_fused_topk_chooses_the_same(version: str) -> None:
    if version == "0.33.0":
        pytest.skip("vLLM's own fused_topk passes the padding of the batch to the ops")
    module = module_of(version, "fused_topk")
    scorings = ["softmax"]
    if "scoring_func" in parameters(module.fused_topk):
        scorings.append("sigmoid")

    def call(renormalize: bool, indices_type: Any, scoring: str) -> Any:
        options = {"scoring_func": scoring} if len(scorings) > 1 else {}
        return module.fused_topk(
            random(T, 8), random(T, E), K, renormalize, indices_type, **options
        )

    options = combinations(
        renormalize=(False, True),
        indices_type=(None, torch.int64, torch.uint32),
        scoring=scorings,
    )
    assert_serves([functools.partial(call, **each) for each in options])


def test_the_default_router_chooses_the_same(use_engine: UseEngine) -> None:
    use_engine(STANDINS / "vllm-0.24.0")
    make = module_of("0.24.0", "fused_topk").FusedTopKRouter

    def call(renormalize: bool, indices_type: Any, scoring: str) -> Any:
        chosen_by = make(K, scoring, renormalize)
        return chosen_by._compute_routing(
            random(T, 8), random(T, E), indices_type, input_ids=torch.arange(T)
        )

    options = combinations(
        renormalize=(False, True),
        indices_type=(None, torch.int64, torch.uint32),
        scoring=("softmax", "sigmoid"),
    )
    assert_serves([functools.partial(call, **each) for each in options])


def test_grouped_topk_chooses_the_same(version: str) -> None:
    module = module_of(version, "grouped_topk")
    scale = () if version == "0.9.2" else (2.5,)

    def call(renormalize: bool, scoring: str, biased: bool) -> Any:
        bias = torch.nn.Parameter(random(E, seed=1)) if biased else None
        with torch.inference_mode():
            return module.grouped_topk(
                random(T, 8), random(T, E), K, renormalize, 4, 2, scoring, *scale, bias
            )

    options = combinations(
        renormalize=(False, True), scoring=("softmax", "sigmoid"), biased=(False, True)
    )
    assert_serves([functools.partial(call, **each) for each in options])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_added(version: str, dtype: Any) -> None:
    rows = random(T, K, 12, dtype=dtype)
    expected, found = torch.empty((T, 12), dtype=dtype), torch.empty((T, 12), dtype=dtype)
    custom_ops().moe_sum(rows, expected)
    tessera.vllm.install()
    engine_ops.calls.clear()
    custom_ops().moe_sum(rows, found)
    assert engine_ops.calls == []
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 1, T])
@pytest.mark.parametrize("ids_type", [torch.int32, torch.int64])
def test_rows_are_permuted_and_brought_back(
    version: str, ids_type: Any, num_tokens: int, mapped: bool
) -> None:
    if version == "0.9.2":
        pytest.skip("vLLM 0.9.2 has functions of other parameters")
    module = module_of(version, "moe_permute")
    x = random(num_tokens, 8, dtype=torch.bfloat16)
    ids = torch.randint(E, (num_tokens, K), generator=torch.Generator().manual_seed(3))
    options: dict[str, Any] = {}
    if mapped:
        expert_map = torch.full((E,), -1, dtype=torch.int32)
        expert_map[torch.randperm(E, generator=torch.Generator().manual_seed(4))[:10]] = (
            torch.arange(10, dtype=torch.int32)
        )
        options = {"n_local_expert": 10, "expert_map": expert_map}
    scale = random(num_tokens, 2, seed=5)

    def run() -> tuple[list[Any], Any]:
        results = module.moe_permute(x, scale, ids.to(ids_type), E, **options)
        brought_back = torch.empty((num_tokens, 8), dtype=x.dtype)
        offsets = results[2] if mapped else None
        weights = random(num_tokens, K, seed=6)
        rows = results[0]
        rows[int(results[2][-1]) :] = torch.nan
        module.moe_unpermute(brought_back, rows, weights, results[3], offsets)
        return list(results), brought_back

    expected, back = run()
    tessera.vllm.install()
    engine_ops.calls.clear()
    found, found_back = run()
    assert engine_ops.calls == []
    assert [each.dtype for each in found] == [each.dtype for each in expected]
    used = int(expected[2][-1])
    assert torch.equal(found[0][:used], expected[0][:used])
    assert torch.equal(found[1][:used], expected[1][:used])
    assert found[2].tolist() == expected[2].tolist()
    here = expected[3] < used
    assert found[3][here].tolist() == expected[3][here].tolist()
    assert (found[3][~here] >= used).all()
    assert (found[3] < num_tokens * K).all()
    assert found[4].tolist() == expected[4].tolist()
    torch.testing.assert_close(found_back, back)
    assert not found_back.isnan().any()


def test_padding_gets_ids_of_minus_one(newest: str) -> None:
    is_padding = torch.arange(T) >= 14
    tessera.vllm.install()
    for name in OPS:
        found = buffers()
        getattr(custom_ops(), name)(*found, random(T, E), is_padding=is_padding)
        assert set(found[1][14:].flatten().tolist()) == {-1}
        assert (found[1][:14] >= 0).all()
    assert engine_ops.calls == []


def refused(name: str) -> tuple[Callable[[], Any], str]:
    """A call that Tessera does not serve, and what is said of it."""
    ops, logits = custom_ops(), random(T, E)
    table = torch.zeros((100, K), dtype=torch.int32)
    permute = importlib.import_module(f"{FUSED_MOE}.moe_permute_unpermute").moe_permute
    ids = torch.zeros((T, K), dtype=torch.int32)
    calls: dict[str, tuple[Callable[[], Any], str]] = {
        "hash": (
            lambda: ops.topk_hash_softplus_sqrt(
                *buffers(), logits, input_tokens=ids[:, 0], hash_indices_table=table
            ),
            "hash_indices_table: expected none, got Tensor",
        ),
        "scores": (
            lambda: ops.grouped_topk(logits.softmax(-1), 4, 2, K, True, 1.0, logits[0], 0),
            "scoring_func: expected 1, the sigmoid of logits, got 0",
        ),
        "single experts": (
            lambda: ops.grouped_topk(logits, E, 6, K, True, 1.0, logits[0], 1),
            "expected groups of 2 experts or more",
        ),
        "short ids": (
            lambda: ops.topk_softmax(buffers()[0], buffers()[1][:, :4], buffers()[2], logits, True),
            "topk_ids: expected torch.int32 [17, 5], got torch.int32 [17, 4]",
        ),
        "sum of local slots": (
            lambda: ops.moe_sum(
                random(T, K, 4), torch.empty((T, 4)), topk_ids=ids, expert_map=ids[0]
            ),
            "topk_ids: expected none, got Tensor",
        ),
        "scratch": (
            lambda: permute(random(T, 8), None, ids, E, scratch=object()),
            "scratch: expected none, got object",
        ),
    }
    return calls[name]


@pytest.mark.parametrize(
    "name", ["hash", "scores", "single experts", "short ids", "sum of local slots", "scratch"]
)
def test_refused_calls_go_to_vllm_and_are_told_once(
    newest: str, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("choose", "write", "add_rows", "permute"):

        def run(*args: Any, each: str = each, **kwargs: Any) -> tuple[Any, ...]:
            engine_ops.calls.append(each)
            return (random(2),) * 5

        monkeypatch.setattr(engine_router, each, run)
    tessera.vllm.install()
    call, message = refused(name)
    for _ in range(2):
        call()
    assert len(engine_ops.calls) == 2
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert message in warnings[0]


def test_every_function_of_the_table_is_served(version: str) -> None:
    generation = generation_of(version)
    names = [f"vllm._custom_ops.{name}" for name in generation.ops]
    names += [".".join(function) for function in generation.functions]
    assert tessera.vllm.install() == names


def test_a_module_that_cannot_be_imported_is_left_alone(
    newest: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"{FUSED_MOE}.moe_permute_unpermute", None)
    served = tessera.vllm.install()
    assert f"{FUSED_MOE}.router.grouped_topk_router.grouped_topk" in served
    assert not [name for name in served if name.endswith("permute")]
    assert f"{FUSED_MOE}.moe_permute_unpermute.moe_permute is left alone" in caplog.text


_BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "ids_of_one_row": (
        {"topk_ids": torch.zeros(1, K, dtype=torch.int64).expand(T, K)},
        "topk_ids: expected a contiguous tensor, got strides [0, 1]",
    ),
    "indices_of_one_row": (
        {"token_expert_indices": torch.zeros(1, K, dtype=torch.int32).expand(T, K)},
        "token_expert_indices: expected a contiguous tensor, got strides [0, 1]",
    ),
    "indices_elsewhere": (
        {"token_expert_indices": torch.zeros(T, K, dtype=torch.int32, device="meta")},
        "token_expert_indices: expected a tensor on cpu, got meta",
    ),
}


@pytest.mark.parametrize("name", _BAD_TENSORS)
def test_tensors_that_cannot_be_written_are_refused_first(name: str) -> None:
    changed, message = _BAD_TENSORS[name]
    weights, ids, indices = buffers()
    given = {"topk_ids": ids, "token_expert_indices": indices, **changed}
    with pytest.raises(ValueError, match=re.escape(f"topk_softmax: {message}")):
        router.topk_softmax(weights, gating_output=random(T, E), **given)
    assert (weights == 7).all() and (ids == 77).all()


def test_outputs_with_the_same_memory_are_refused() -> None:
    weights, ids, _ = buffers()
    message = "token_expert_indices: expected memory of its own, got memory shared with topk_ids"
    with pytest.raises(ValueError, match=f"^topk_softmax: {message}$"):
        router.topk_softmax(weights, ids, ids, random(T, E))
    assert (weights == 7).all() and (ids == 77).all()


def test_hidden_states_without_tokens_are_refused() -> None:
    message = (
        f"fused_topk: hidden_states: expected {T} tokens, as many as the logits have, got shape []"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        router.fused_topk(torch.tensor(1.0), random(T, E), K, True)
