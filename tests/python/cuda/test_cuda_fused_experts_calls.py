"""Calls of `fused_experts` on a GPU: streams, graphs, devices, chunks, memory, compiled code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tessera
from cuda_experts_calls import DEVICE, FORMS, TOKENS, experts_call, judged, of_tokens

# What changes from one call of a layer to the next.
CHANGING = ("x", "topk_weights", "topk_ids")


def batches(form: str, tokens: int, count: int) -> list[dict[str, Any]]:
    """Calls of one layer: the same weights, other tokens."""
    first = FORMS[form](0, tokens=tokens)
    others = [FORMS[form](seed, tokens=tokens) for seed in range(1, count)]
    return [first] + [first | {name: other[name] for name in CHANGING} for other in others]


@pytest.mark.parametrize("tokens", TOKENS)
def test_runs_on_the_current_stream(tokens: int) -> None:
    import torch

    arguments = experts_call(1, tokens=tokens)
    expected = tessera.fused_experts(**arguments)
    source = arguments["x"].cpu().pin_memory()
    arguments["x"].zero_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # some ten milliseconds: another stream would be first
        arguments["x"].copy_(source, non_blocking=True)
        found = tessera.fused_experts(**arguments).cpu()
    assert torch.equal(found, expected.cpu())


def test_four_streams_at_once() -> None:
    import torch

    inputs = [
        FORMS[form](2, tokens=tokens)
        for form in ("plain", "transposed", "fp8_blocks", "fp8_rows", "fp8_static")
        for tokens in TOKENS
    ]
    expected = [tessera.fused_experts(**arguments) for arguments in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    for turn in range(25):
        kept = []
        for number, stream in enumerate(streams):
            index = (3 * turn + number) % len(inputs)
            with torch.cuda.stream(stream):
                kept.append((index, tessera.fused_experts(**inputs[index])))
        torch.cuda.synchronize()
        for index, found in kept:
            assert torch.equal(found, expected[index])


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(
    "form",
    [
        "plain",
        "transposed",
        "odd_ids",
        "more_global_experts",
        "fp8_blocks",
        "fp8_rows",
        "fp8_static",
    ],
)
def test_replays_of_a_graph_with_other_contents(form: str, tokens: int, with_out: bool) -> None:
    import torch

    calls = batches(form, tokens, 5)
    expected = [tessera.fused_experts(**arguments) for arguments in calls]
    # The first token of "odd_ids" has no pair that counts: its output is 0.
    all_zero = form == "odd_ids" and tokens == 1
    assert torch.equal(expected[0], expected[1]) == all_zero
    given = calls[0] | {name: calls[0][name].clone() for name in CHANGING}
    out = torch.empty_like(expected[0]) if with_out else None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = tessera.fused_experts(**given, out=out)
    for turn in range(100):
        index = (turn * 3 + turn // 5) % len(calls)
        for name in CHANGING:
            given[name].copy_(calls[index][name])
        found.fill_(float("nan"))
        graph.replay()
        assert torch.equal(found, expected[index]), f"replay {turn}"


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("form", ["plain", "odd_ids", "more_global_experts"])
def test_a_call_reads_what_the_kernel_before_it_wrote(form: str, tokens: int) -> None:
    """The ids are the last to change, directly before each call, and nothing waits."""
    import torch

    calls = batches(form, tokens, 5)
    expected = [tessera.fused_experts(**arguments) for arguments in calls]
    given = calls[0] | {name: calls[0][name].clone() for name in CHANGING}
    order = sorted(CHANGING, key="topk_ids".__eq__)
    found = []
    for turn in range(200):
        for name in order:
            given[name].copy_(calls[turn * 3 % len(calls)][name])
        found.append(tessera.fused_experts(**given))
    for turn, output in enumerate(found):
        assert torch.equal(output, expected[turn * 3 % len(calls)]), f"call {turn}"


CAPTURE_FIRST = """
import torch, tessera
{prelude}
x = torch.ones((64, 64), dtype=torch.bfloat16, device="cuda")
w13 = torch.full((4, 128, 64), 1 / 64, dtype=torch.bfloat16, device="cuda")
w2 = torch.full((4, 64, 128), 1 / 128, dtype=torch.bfloat16, device="cuda")
weights = torch.full((64, 2), 0.5, device="cuda")
ids = torch.arange(128, dtype=torch.int32, device="cuda").reshape(64, 2) % 4
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    found = tessera.fused_experts(x, w13, w2, weights, ids, activation="relu2_no_mul")
for factor in (1, 2):
    x.fill_(factor)
    graph.replay()
    print(found.shape == x.shape, found.float().unique().tolist())
"""


@pytest.mark.parametrize("prelude", ["", "tessera.warmup()"])
def test_the_first_call_of_a_process_may_be_captured(prelude: str) -> None:
    code = CAPTURE_FIRST.format(prelude=prelude)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True [1.0]\nTrue [4.0]\n", done.stderr


def test_a_device_that_is_not_the_current_one() -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("no second CUDA device")
    torch.cuda.set_device(0)  # JAX leaves the device of its last call
    tessera.warmup("cuda:1")
    for form in ("plain", "transposed", "more_global_experts"):
        for tokens in TOKENS:
            arguments = FORMS[form](3, tokens=tokens)
            expected = tessera.fused_experts(**arguments)
            there = {
                # `to` would make transposed arrays contiguous.
                name: torch.empty_strided(
                    value.shape, value.stride(), dtype=value.dtype, device="cuda:1"
                ).copy_(value)
                if isinstance(value, torch.Tensor)
                else value
                for name, value in arguments.items()
            }
            found = tessera.fused_experts(**there)
            assert found.device == torch.device("cuda:1")
            assert torch.cuda.current_device() == 0
            assert torch.equal(found.cpu(), expected.cpu())
    there["w13"] = arguments["w13"]
    with pytest.raises(
        ValueError, match=r"^fused_experts: w13\.device: expected cuda:1, got cuda:0$"
    ):
        tessera.fused_experts(**there)


@pytest.mark.parametrize(("tokens", "top_k"), [(131_072, 8), (300_007, 2)])
def test_many_tokens_run_in_chunks(tokens: int, top_k: int) -> None:
    """The second call's x has more elements than int32 counts."""
    import torch

    hidden, needed_gib = 7168, 20
    free_gib = torch.cuda.mem_get_info()[0] >> 30
    if free_gib < needed_gib:
        pytest.skip(f"needs {needed_gib} GiB of memory on the device, found {free_gib}")
    arguments = experts_call(4, tokens=tokens, top_k=top_k, hidden=hidden, intermediate=64)
    shape = {"T": tokens, "H": hidden, "E": 16, "F": 64, "k": top_k}
    (chosen,) = (
        one
        for one in tessera.explain(
            "fused_experts", **shape, activation="silu", dtype="bfloat16", device=DEVICE
        )
        if one.selected
    )
    assert " chunks of " in chosen.plan
    length = int(chosen.plan.rpartition(" chunks of ")[2].split()[0])
    output = tessera.fused_experts(**arguments)
    assert judged(arguments, output) == []
    # Around the borders of the chunks, and at the end.
    borders = torch.arange(0, tokens, length, device=DEVICE)
    places = torch.cat([borders - 1, borders, borders + 1, torch.tensor([tokens - 1]).to(DEVICE)])
    places = places.clamp(0, tokens - 1).unique()
    assert torch.equal(output[places], tessera.fused_experts(**of_tokens(arguments, places)))
    del arguments, output
    torch.cuda.empty_cache()


def test_memory_is_asked_for_in_the_size_that_the_page_names() -> None:
    """Per pair 2 bytes for each number of the padded F and H; on 9.0 F has more rows."""
    import torch

    arguments = experts_call(5, tokens=2048, top_k=8, hidden=1024, intermediate=512)
    out = tessera.fused_experts(**arguments)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    tessera.fused_experts(**arguments, out=out)
    taken = torch.cuda.max_memory_allocated() - before
    of_pairs = 2048 * 8 * (2 * 512 + 2 * 1024)
    has_wgmma = torch.cuda.get_device_capability() == (9, 0)
    of_padding = 127 * (16 + 1) * 2 * 512 if has_wgmma else 0
    assert of_pairs <= taken <= 1.02 * of_pairs + of_padding


# In a process of its own: blocks that other calls have left behind could hold the workspace.
NO_MEMORY = """
import torch, tessera
from cuda_experts_calls import experts_call, judged
arguments = experts_call(6, tokens=16_384, top_k=8, hidden=2048)
small = experts_call(7)
expected = tessera.fused_experts(**small)
out = torch.full_like(arguments["x"], 77)
torch.cuda.empty_cache()
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
try:
    tessera.fused_experts(**arguments, out=out)  # half a GiB
except torch.OutOfMemoryError:
    print("no memory")
print(out.eq(77).all().item(), torch.equal(tessera.fused_experts(**small), expected))
torch.cuda.set_per_process_memory_fraction(1.0)
tessera.fused_experts(**arguments, out=out)
print(judged(arguments, out))
"""


def test_a_workspace_that_torch_has_no_memory_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "no memory\nTrue True\n[]\n", done.stderr


def compiled_layer(arguments: dict[str, Any], **how: Any) -> tuple[Any, Any]:
    """A layer of the call, with kernels of torch's around the op, as it is and compiled."""
    import torch

    fixed = {name: value for name, value in arguments.items() if name not in CHANGING}

    def layer(x: Any, topk_weights: Any, topk_ids: Any) -> Any:
        given = {"x": x * 2, "topk_weights": topk_weights, "topk_ids": topk_ids}
        return tessera.fused_experts(**given, **fixed) * 2

    torch._dynamo.reset()
    return layer, torch.compile(layer, fullgraph=True, **how)


# Inductor and Triton warn of their own doings.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("form", "dynamic"),
    [("plain", False), ("transposed", True), ("more_global_experts", True), ("fp8_blocks", True)],
)
def test_inductor(form: str, dynamic: bool) -> None:
    import torch

    layer, compiled = compiled_layer(FORMS[form](0), dynamic=dynamic)
    for tokens in (8, 1000):
        given = [FORMS[form](8, tokens=tokens)[name] for name in CHANGING]
        assert torch.equal(compiled(*given), layer(*given))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tokens", [1, 1000])
def test_cuda_graph_trees(tokens: int) -> None:
    """Later calls replay one graph: in the same memory, with the tokens that they are given."""
    import torch

    counters = torch._dynamo.utils.counters
    counters.clear()
    calls = batches("plain", tokens, 6)
    layer, compiled = compiled_layer(calls[0], mode="reduce-overhead")
    addresses = []
    for arguments in calls:
        given = [arguments[name].clone() for name in CHANGING]
        expected = layer(*given)
        torch.compiler.cudagraph_mark_step_begin()
        found = compiled(*given)
        assert torch.equal(found, expected)
        addresses.append(found.data_ptr())
        del found
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert len(set(addresses[3:])) == 1


@pytest.mark.parametrize("form", ["plain", "transposed", "odd_ids", "fp8_blocks"])
def test_opcheck(form: str) -> None:
    import torch

    import tessera.torch_ops  # noqa: F401, it registers the op

    checks = ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if not form.startswith("fp8"):  # compares by torch.allclose, which CUDA lacks for fp8
        checks.append("test_schema")
    op = torch.ops.tessera.fused_experts.default
    torch.library.opcheck(op, (), FORMS[form](9), test_utils=checks)
