"""`torch.ops.tessera.align_block_size`, and what becomes of the function in compiled code."""

from __future__ import annotations

import inspect
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

import tessera  # noqa: E402
import tessera.torch_ops  # noqa: E402
from tessera._device import HOST  # noqa: E402
from tessera._outputs import REFERENCE, output_sizes  # noqa: E402
from tessera._torch_registry import TORCH_OPS  # noqa: E402
from tessera.ops.align_block_size import symbolic_sizes  # noqa: E402

NUM_EXPERTS, TOP_K, BLOCK_SIZE = 12, 2, 16
GOOD: dict[str, Any] = {"block_size": BLOCK_SIZE, "num_experts": NUM_EXPERTS}
# Fewer ids than experts, and more.
TOKENS = (3, 5, 40, 300)
op = torch.ops.tessera.align_block_size


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> None:
    torch._dynamo.reset()


def routed(num_tokens: int, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, NUM_EXPERTS, generator=generator)


def ids_of(num_tokens: int, dtype: Any = torch.int64) -> Any:
    return routed(num_tokens).topk(TOP_K).indices.to(dtype)


def a_map() -> Any:
    """Odd experts live here."""
    expert_map = torch.full((NUM_EXPERTS,), -1, dtype=torch.int32)
    expert_map[1::2] = torch.arange(NUM_EXPERTS // 2, dtype=torch.int32)
    return expert_map


def layer(logits: Any) -> tuple[Any, ...]:
    """A router, by Tessera's function: weights, ids, and their blocks."""
    weights, topk_ids = torch.softmax(logits, dim=-1).topk(TOP_K)
    return weights, topk_ids, *tessera.align_block_size(topk_ids, **GOOD)


def layer_by_op(logits: Any) -> tuple[Any, ...]:
    weights, topk_ids = torch.softmax(logits, dim=-1).topk(TOP_K)
    return weights, topk_ids, *op(topk_ids, BLOCK_SIZE, NUM_EXPERTS)


def assert_equal(found: Any, expected: Any) -> None:
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("num_tokens", TOKENS)
@pytest.mark.parametrize("pad_sorted_ids", [False, True])
def test_the_op_gives_what_the_function_gives(num_tokens: int, pad_sorted_ids: bool) -> None:
    topk_ids = ids_of(num_tokens)
    options = {**GOOD, "pad_sorted_ids": pad_sorted_ids, "expert_map": a_map(), "tail_expert": 7}
    for ignores in (False, True):
        expected = tessera.align_block_size(topk_ids, **options, ignore_invalid_experts=ignores)
        found = op(topk_ids, **options, ignore_invalid_experts=ignores)
        assert_equal(found, expected)
    out = tuple(torch.full_like(array, -5) for array in expected)
    counts, dropped = (torch.full((n,), -5, dtype=torch.int32) for n in (NUM_EXPERTS, 1))
    written = dict(zip(tessera.AlignedBlocks._fields, out, strict=True))
    statistics = {"expert_counts": counts, "num_dropped": dropped}
    op.out(topk_ids, **options, ignore_invalid_experts=True, **statistics, **written)
    assert_equal(out, expected)
    assert int(counts.sum()) == int((a_map()[topk_ids] >= 0).sum())
    assert int(dropped) == 0


def test_outputs_share_no_memory() -> None:
    found = op(ids_of(5), **GOOD)
    assert len({array.untyped_storage().data_ptr() for array in found}) == 3


@pytest.mark.parametrize("run", [layer, layer_by_op])
def test_static_shapes(run: Callable[..., Any]) -> None:
    compiled = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
    for num_tokens in (0, *TOKENS):
        logits = routed(num_tokens)
        assert_equal(compiled(logits), layer(logits))


@pytest.mark.parametrize("run", [layer, layer_by_op])
def test_dynamic_shapes_compile_once(run: Callable[..., Any]) -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    for num_tokens in TOKENS:
        logits = routed(num_tokens)
        assert_equal(compiled(logits), layer(logits))
    assert counter.frame_count == 1


# Inductor itself uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor(dynamic: bool) -> None:
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
    for num_tokens in TOKENS[::2]:
        logits = routed(num_tokens)
        assert_equal(compiled(logits), layer(logits))


def test_text_of_graphs_has_all_arguments() -> None:
    """Inductor finds compiled code on disk by the text of a graph.

    Without all arguments the text would also find code of a version with other arguments.
    """
    graphs = []

    def recording(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    options: list[dict[str, Any]] = [{}, {"ignore_invalid_experts": True, "tail_expert": 0}]
    for given in options:
        torch._dynamo.reset()
        run = torch.compile(
            lambda ids, given=given: tessera.align_block_size(ids, **GOOD, **given),
            backend=recording,
        )
        assert_equal(run(ids_of(5)), tessera.align_block_size(ids_of(5), **GOOD, **given))
    names = [one.name for one in op.default._schema.arguments]
    calls = [node for one in graphs for node in one.graph.nodes if node.target is op.default]
    assert [(len(call.args), call.kwargs) for call in calls] == 2 * [(len(names), {})]
    by_name = [dict(zip(names, call.args, strict=True)) for call in calls]
    assert by_name[0]["ignore_invalid_experts"] is False
    assert by_name[1]["ignore_invalid_experts"] is True
    assert by_name[1]["tail_expert"] == 0


def test_sizes_of_blocks_and_experts_may_be_dynamic() -> None:
    def align(topk_ids: Any, block_size: int, num_experts: int) -> Any:
        return tessera.align_block_size(
            topk_ids, block_size=block_size, num_experts=num_experts, filtered_group=True
        )

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(align, fullgraph=True, dynamic=True, backend=counter)
    for num_tokens, block_size, num_experts in ((3, 16, 12), (50, 7, 12), (50, 64, 500)):
        topk_ids = ids_of(num_tokens)
        found = compiled(topk_ids, block_size, num_experts)
        assert isinstance(found, tessera.AlignedBlocks)
        assert_equal(found, align(topk_ids, block_size, num_experts))
    assert counter.frame_count == 1


def test_every_argument_in_compiled_code() -> None:
    topk_ids = ids_of(40)
    topk_ids[::7, 0] = NUM_EXPERTS
    topk_ids[::5, 1] = -1

    def align(topk_ids: Any, expert_map: Any, *written: Any, out: Any = None) -> Any:
        counts, dropped, statistics = written
        return tessera.align_block_size(
            topk_ids,
            **GOOD,
            expert_map=expert_map,
            ignore_invalid_experts=True,
            pad_sorted_ids=True,
            tail_expert=3,
            map_tail=True,
            filtered_group=True,
            expert_counts=counts,
            num_dropped=dropped,
            statistics=statistics,
            num_threads=1,
            out=out,
        )

    lengths = ((NUM_EXPERTS, torch.int32), (1, torch.int32), (6, torch.float64))
    written = [torch.zeros(length, dtype=dtype) for length, dtype in lengths]
    expected = align(topk_ids, a_map(), *written)
    compiled = torch.compile(align, fullgraph=True, backend="aot_eager")
    theirs = [torch.full_like(array, -5) for array in written]
    found = compiled(topk_ids, a_map(), *theirs)
    assert_equal((*found, *theirs), (*expected, *written))

    # Longer than needed: filled over their whole length.
    out = tuple(
        torch.full((len(array) + more,), -5, dtype=torch.int32)
        for array, more in zip(expected, (9, 4, 0), strict=True)
    )
    longer = tuple(array.clone() for array in out)
    align(topk_ids, a_map(), None, None, None, out=longer)
    found = compiled(topk_ids, a_map(), None, None, None, out=out)
    assert all(got is given for got, given in zip(found, out, strict=True))
    assert_equal(out, longer)


SAMPLES: dict[str, tuple[tuple[int, Any], dict[str, Any]]] = {
    "plain": ((5, torch.int64), {}),
    "few experts": ((300, torch.int32), {"pad_sorted_ids": True}),
    "bytes": ((40, torch.uint8), {"tail_expert": 3, "num_threads": 1}),
    "filtered": ((3, torch.int32), {"filtered_group": True}),
    "map": ((40, torch.int16), {"expert_map": a_map(), "ignore_invalid_experts": True}),
}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("writes", [False, True])
def test_opcheck(sample: str, writes: bool) -> None:
    shape, options = SAMPLES[sample]
    topk_ids = ids_of(*shape)
    options = options | GOOD
    if writes:
        options["expert_counts"] = torch.empty(NUM_EXPERTS, dtype=torch.int32)
        options["num_dropped"] = torch.empty(1, dtype=torch.int32)
        options["statistics"] = torch.empty(6, dtype=torch.float64)
    torch.library.opcheck(op.default, (topk_ids,), options)
    if writes:
        blocks = op(topk_ids, **options)
        options |= dict(zip(tessera.AlignedBlocks._fields, blocks, strict=True))
        torch.library.opcheck(op.out, (topk_ids,), options)


def test_no_part_in_autograd() -> None:
    logits = routed(40).requires_grad_()
    for run in (layer, layer_by_op, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        weights, _, *blocks = run(logits)
        assert all(not array.requires_grad and array.grad_fn is None for array in blocks)
        weights[:, 0].sum().backward()
        gradient, logits.grad = logits.grad, None
        torch.softmax(logits, dim=-1).topk(TOP_K).values[:, 0].sum().backward()
        torch.testing.assert_close(gradient, logits.grad)
        logits.grad = None


def test_in_inference_mode() -> None:
    expected = layer(routed(40))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for run in (layer, layer_by_op, compiled):
            found = run(routed(40))
            assert all(array.is_inference() for array in found)
            assert_equal(found, expected)


def test_the_formula_for_symbols_is_the_cores() -> None:
    sizes = (0, 1, 7, 8, 9, 100, 65_537)
    blocks, experts = (1, 2, 7, 16, 128), (1, 2, 8, 513, 65_536)
    for num_ids, block_size, num_experts in itertools.product(sizes, blocks, experts):
        for pad, filtered in itertools.product((False, True), repeat=2):
            shape = (num_ids, block_size, num_experts, pad)
            expected = output_sizes(*shape, HOST, REFERENCE, filtered)[:2]
            assert symbolic_sizes(*shape, filtered) == expected


@pytest.mark.parametrize("name", TORCH_OPS)
def test_shapes_for_symbols_are_those_of_outputs(name: str) -> None:
    torch_op = TORCH_OPS[name]
    for num_tokens, block_size, rows in itertools.product((0, 3, 40), (1, 7, 16), (1, 5)):
        ids = ids_of(num_tokens).int()
        values = {
            "topk_ids": ids,
            "token_lora_mapping": torch.zeros(num_tokens, dtype=torch.int32),
            "expert_num_tokens": ids.flatten(),
            "block_size": block_size,
            "num_experts": NUM_EXPERTS,
            "max_loras": rows,
            "max_tokens_per_batch": rows,
            "tail_expert": -1,
            "input": torch.zeros(num_tokens, rows, block_size),
            "x": torch.zeros(num_tokens, block_size),
            "w13": torch.zeros(NUM_EXPERTS, 2 * rows, block_size),
            "w2": torch.zeros(NUM_EXPERTS, block_size, rows),
            "topk_weights": torch.zeros(ids.shape),
            "router_logits": torch.zeros(num_tokens, NUM_EXPERTS),
            "top_k": rows,
            "rows": torch.zeros(rows, block_size),
            "inverse": ids,
            "group": "1x128",
        }
        parameters = inspect.signature(torch_op.function).parameters
        arguments = {key: value for key, value in values.items() if key in parameters}
        if name == "moe_sum":  # whose slots are an axis of the input
            del arguments["topk_weights"]
        if name == "fused_moe":  # of which they are optional outputs
            del arguments["topk_weights"], arguments["topk_ids"]
        found = torch_op.function(**arguments)
        arrays = found if isinstance(found, tuple) else (found,)
        assert torch_op.shapes(arguments) == tuple(tuple(array.shape) for array in arrays)


@pytest.mark.parametrize("name", TORCH_OPS)
def test_arguments_are_those_of_the_function(name: str) -> None:
    parameters = dict(inspect.signature(TORCH_OPS[name].function).parameters)
    del parameters["out"]
    parameters.pop("validate", None)
    packet = getattr(torch.ops.tessera, name)
    for overload in (packet.default, packet.out):
        arguments = [one for one in overload._schema.arguments if not one.kwarg_only]
        assert [one.name for one in arguments] == list(parameters)
        for argument in arguments:
            default = parameters[argument.name].default
            assert argument.has_default_value() == (default is not inspect.Parameter.empty)
            if argument.has_default_value():
                assert argument.default_value == default


def test_refusals_are_the_cores() -> None:
    bad = r"align_block_size: block_size: expected .*, got 0"
    with pytest.raises(ValueError, match=bad):
        op(ids_of(3), 0, NUM_EXPERTS)
    with pytest.raises(TypeError, match=r"^align_block_size: topk_ids.dtype: expected an integer"):
        op(routed(3), **GOOD)

    def align(topk_ids: Any) -> Any:
        return tessera.align_block_size(topk_ids, block_size=0, num_experts=NUM_EXPERTS)

    with pytest.raises(Exception, match=bad):
        torch.compile(align, fullgraph=True, dynamic=False, backend="aot_eager")(ids_of(3))


FOLLOWED = (
    r"align_block_size: statistics: expected a tensor that autograd does not follow, got one that "
    r"requires grad \(its detach\(\) does not\)"
)


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("by_op", [False, True])
def test_statistics_that_autograd_follows(by_op: bool, writes: bool) -> None:
    topk_ids = ids_of(5)
    lengths = [len(array) for array in op(topk_ids, **GOOD)] if writes else None

    def align(topk_ids: Any, statistics: Any) -> Any:
        int32 = torch.int32
        out = lengths and tuple(torch.zeros(length, dtype=int32) for length in lengths)
        if not by_op:
            tessera.align_block_size(topk_ids, **GOOD, statistics=statistics, out=out)
        elif out is None:
            op(topk_ids, **GOOD, statistics=statistics)
        else:
            outputs = dict(zip(tessera.AlignedBlocks._fields, out, strict=True))
            op.out(topk_ids, **GOOD, statistics=statistics, **outputs)
        return statistics * 1

    followed = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    for fullgraph in (False, True):
        compiled = torch.compile(align, fullgraph=fullgraph, backend="aot_eager")
        with pytest.raises(Exception, match=FOLLOWED):
            compiled(topk_ids, followed)
    for mode in ("real", "fake", "symbolic"):
        with pytest.raises(ValueError, match=FOLLOWED):
            make_fx(align, tracing_mode=mode)(topk_ids, followed)
    with pytest.raises(ValueError, match=FOLLOWED):
        align(topk_ids, followed)
    assert not followed.detach().any()
    found = torch.compile(align, fullgraph=True, backend="aot_eager")(topk_ids, followed.detach())
    assert_equal([found], [align(topk_ids, torch.zeros(6, dtype=torch.float64))])
    assert found.any()


def test_eager_calls_do_without_it() -> None:
    program = """
import sys, torch, tessera
tessera.align_block_size(torch.tensor([1, 0]), block_size=4, num_experts=2)
assert "tessera.torch_ops" not in sys.modules and "torch._dynamo" not in sys.modules
def align(topk_ids):
    return tessera.align_block_size(topk_ids, block_size=4, num_experts=2)
found = torch.compile(align, fullgraph=True, backend="eager")(torch.tensor([1, 0]))
assert "tessera.torch_ops" in sys.modules
print(found.sorted_token_ids.tolist())
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "[1, 2, 2, 2, 0, 2, 2, 2]\n"
