"""Calls that cannot run are refused before a launch; after a failure the next call works."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import tessera
from cuda_calls import CANARY, assert_same

IDS = np.array([[0, 1], [1, 2]], np.int32)
GOOD: dict[str, Any] = {"block_size": 4, "num_experts": 3}
LENGTHS = {"sorted_token_ids": 13, "expert_ids": 4, "num_tokens_post_pad": 1}


def on_cuda(length: int, dtype: Any = np.int32) -> Any:
    import torch

    return torch.from_numpy(np.full(length, CANARY % 97, dtype)).cuda()


def cuda_ids() -> Any:
    import torch

    return torch.from_numpy(IDS).cuda()


def assert_works() -> None:
    found = tessera.align_block_size(cuda_ids(), **GOOD)
    assert_same(found, tessera.align_block_size(IDS, **GOOD))


@pytest.mark.parametrize("name", [*LENGTHS, "expert_map", "expert_counts", "num_dropped"])
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_host_arrays_beside_ids_on_a_device(name: str, framework: str) -> None:
    import torch

    host: Any = np.full(LENGTHS.get(name, 1 if name == "num_dropped" else 3), CANARY, np.int32)
    given = torch.from_numpy(host) if framework == "torch" else host
    outputs = {output: on_cuda(length) for output, length in LENGTHS.items()}
    before = {output: array.clone() for output, array in outputs.items()}
    others: dict[str, Any] = {}
    (outputs if name in LENGTHS else others)[name] = given
    with pytest.raises(
        ValueError, match=rf"^align_block_size: {name}\.device: expected cuda:0, got cpu$"
    ):
        tessera.align_block_size(cuda_ids(), out=tuple(outputs.values()), **others, **GOOD)
    assert (host == CANARY).all()
    assert all(torch.equal(outputs[n], before[n]) for n in LENGTHS if n != name)
    assert_works()


def test_outputs_on_a_device_for_ids_on_the_host() -> None:
    out = tuple(on_cuda(length) for length in LENGTHS.values())
    with pytest.raises(ValueError, match=r"sorted_token_ids\.device: expected cpu, got cuda:0"):
        tessera.align_block_size(IDS, out=out, **GOOD)


@pytest.mark.parametrize(
    ("kind", "message", "changes"),
    [
        (ValueError, "block_size: expected an integer in", {"block_size": 0}),
        (TypeError, "block_size: expected an integer, got float", {"block_size": 4.0}),
        (ValueError, "capacity: expected at most 2147483647", {"block_size": 2**31 - 1}),
        (ValueError, "num_experts: expected an integer in", {"num_experts": -1}),
        (ValueError, "tail_expert: expected an integer of 32 bits", {"tail_expert": 2**31}),
        (TypeError, "out: expected a tuple of three arrays", {"out": ()}),
    ],
)
def test_bad_arguments(kind: type[Exception], message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(kind, match=f"^align_block_size: {message}"):
        tessera.align_block_size(cuda_ids(), **{**GOOD, **changes})
    assert_works()


def test_bad_arrays() -> None:
    import torch

    def refused(kind: type[Exception], message: str, topk_ids: Any, **others: Any) -> None:
        with pytest.raises(kind, match=f"^align_block_size: {message}"):
            tessera.align_block_size(topk_ids, **{**GOOD, **others})

    refused(TypeError, r"topk_ids\.dtype: expected an integer type", cuda_ids().float())
    refused(ValueError, "topk_ids: expected a contiguous array", cuda_ids().T)
    refused(
        TypeError, r"expert_map\.dtype: expected int32", cuda_ids(), expert_map=on_cuda(3, "i8")
    )
    refused(
        ValueError,
        r"expert_map\.num_elements: expected 3, got 2",
        cuda_ids(),
        expert_map=on_cuda(2),
    )
    short = (on_cuda(12), on_cuda(4), on_cuda(1))
    refused(
        ValueError, r"sorted_token_ids\.num_elements: expected at least 13", cuda_ids(), out=short
    )
    memory = on_cuda(16)
    shared = (memory[:13], memory[12:], on_cuda(1))
    refused(ValueError, "sorted_token_ids: expected memory of its own", cuda_ids(), out=shared)
    assert torch.equal(memory, on_cuda(16))
    assert_works()


def test_an_allocation_that_fails_is_torch_s_error() -> None:
    import torch

    topk_ids = cuda_ids()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            tessera.align_block_size(topk_ids, block_size=2**29, num_experts=3)
        assert_works()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_works()


PENDING_ERROR = """
import torch, tessera
topk_ids = torch.zeros((16, 8), dtype=torch.int32, device="cuda")
out = tessera.align_block_size(topk_ids, block_size=16, num_experts=64)
torch.cuda.synchronize()
torch.zeros(4, device="cuda")[torch.tensor([1 << 30], device="cuda")]
try:
    torch.cuda.synchronize()
except RuntimeError:
    pass
with torch.cuda.stream({stream}):
    try:
        tessera.align_block_size(topk_ids, block_size=16, num_experts=64, out=out)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.mark.parametrize("stream", ["None", "side"])
def test_a_pending_error_is_told_with_kernel_and_shape(stream: str) -> None:
    code = PENDING_ERROR.format(stream=stream)
    if stream == "side":
        code = code.replace(
            "import torch, tessera", "import torch, tessera\nside = torch.cuda.Stream()"
        )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("RuntimeError align_block_size: "), done.stdout + done.stderr
    for part in ("cuda/", "128 ids", "64 experts", "block_size 16", "cudaErrorAssert"):
        assert part in done.stdout
