"""The package on a CUDA device: what calls return, warmup, explain, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import tessera
from cuda_calls import SHAPES, assert_same, host_ids, implementations, options_of
from tessera._op import op_names
from tessera.cli.main import main


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_outputs_are_new_int32_tensors_of_the_contract_s_sizes(dtype: str) -> None:
    import torch

    for shape in SHAPES:
        tokens, num_experts, top_k, block_size = shape
        host = host_ids(shape, 1).clip(0, 255).astype(dtype)
        topk_ids = torch.from_numpy(host).cuda()
        first = tessera.align_block_size(topk_ids, **options_of(shape))
        second = tessera.align_block_size(topk_ids, **options_of(shape))
        num_ids = tokens * top_k
        capacity = num_ids + min(num_ids, num_experts) * (block_size - 1)
        assert isinstance(first, tessera.AlignedBlocks)
        assert [tuple(array.shape) for array in first] == [
            (capacity,),
            (-(-capacity // block_size),),
            (1,),
        ]
        assert all(array.dtype == torch.int32 and array.is_cuda for array in first)
        assert all(array.is_contiguous() for array in first)
        assert first.num_tokens_post_pad.data_ptr() != second.num_tokens_post_pad.data_ptr()
        assert_same(first, tessera.align_block_size(host, **options_of(shape)))


def test_the_workspace_is_not_kept() -> None:
    import torch

    topk_ids = torch.from_numpy(host_ids((65536, 8, 2, 128), 1)).cuda()
    found = tessera.align_block_size(topk_ids, block_size=128, num_experts=8)
    before = torch.cuda.memory_allocated()
    tessera.align_block_size(topk_ids, block_size=128, num_experts=8, out=found)
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("mode", ["inference_mode", "no_grad", "enable_grad"])
def test_under_the_modes_of_torch(mode: str) -> None:
    import torch

    host = host_ids((256, 64, 2, 64), 2)
    expected = tessera.align_block_size(host, block_size=64, num_experts=64)
    with getattr(torch, mode)():
        topk_ids = torch.from_numpy(host).cuda()
        found = tessera.align_block_size(topk_ids, block_size=64, num_experts=64)
        assert_same(found, expected)
        found.expert_ids.fill_(0)
        again = tessera.align_block_size(topk_ids, block_size=64, num_experts=64, out=found)
    assert again is found
    assert_same(again, expected)


def test_arrays_on_a_device_are_judged_by_the_contract() -> None:
    import torch

    host = np.array([2, 0, 2, 2, 0, 9], np.int32)
    options: dict[str, Any] = {"block_size": 2, "num_experts": 3}
    topk_ids = torch.from_numpy(host).cuda()
    found = tessera.align_block_size(topk_ids, **options)
    assert tessera.contract_violations(topk_ids, found, **options) == []
    found.expert_ids[-1] = 1
    (violation,) = tessera.contract_violations(topk_ids, found, **options)
    assert violation.rule == "expert_tail"


def in_a_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


CONTEXTS = """
import ctypes
{code}
cuda = ctypes.CDLL("libcuda.so.1")
flags, active, context = ctypes.c_uint(), ctypes.c_int(), ctypes.c_void_p()
if cuda.cuCtxGetCurrent(ctypes.byref(context)) == 3:
    print("cuda is not initialized")
else:
    cuda.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active))
    print("active" if active.value else "no context")
"""


def test_import_and_calls_on_the_host_leave_cuda_alone() -> None:
    code = "import sys, numpy, tessera\nassert 'torch' not in sys.modules"
    assert in_a_process(CONTEXTS.format(code=code)) == "cuda is not initialized\n"
    code += "\ntessera.align_block_size(numpy.array([1, 0]), block_size=2, num_experts=2)"
    code += "\ntessera.warmup('cpu')"
    # torch, which the FFI imports, may have counted the devices.
    assert in_a_process(CONTEXTS.format(code=code)) != "active\n"


def test_warmup_makes_a_context() -> None:
    assert in_a_process(CONTEXTS.format(code="import tessera; tessera.warmup()")) == "active\n"


def test_warmup_takes_every_name_of_a_device() -> None:
    import torch

    for device in ("cuda", "cuda:0", 0, torch.device("cuda"), torch.device("cuda", 0)):
        tessera.warmup(device)
    with pytest.raises(ValueError, match=r"^warmup: device: expected .* got cuda:63$"):
        tessera.warmup("cuda:63")


def test_explain_and_impl_agree() -> None:
    code = """
import torch, tessera
topk_ids = torch.zeros((16, 8), dtype=torch.int32, device="cuda")
try:
    print(tessera.align_block_size(topk_ids, block_size=16, num_experts=64).expert_ids[0].item())
except NotImplementedError as error:
    print(error)
"""
    for one in tessera.explain(128, 64, 16, device="cuda"):
        assert bool(one.plan) != bool(one.refusal)
        environment = {**os.environ, "TESSERA_IMPL": one.name, "TESSERA_VERBOSE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.stdout == "0\n":
            assert f"runs {one.name}" in done.stderr
        else:
            assert not one.selected
            assert done.stdout.startswith("align_block_size: implementation: expected cuda/")
            assert f"got {one.name}, which TESSERA_IMPL asks for; it " in done.stdout
    assert len(implementations()) > 1


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--device", "cuda", "--cases", "random:1:5000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["implementations"] == implementations()
    assert main(["align", "--device", "cuda", "--time", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["workloads"]
    assert report["device"] == "cuda:0"
    assert report["implementation"].startswith("cuda/")
    assert report["violations"] == []
    assert set(report["time_us"]) == {"tessera", "torch composition"}
    assert main(["info", "--explain", "8192", "64", "128", "--device", "cuda", "--json"]) == 0
    explained = json.loads(capsys.readouterr().out)
    assert explained["device"] == "cuda:0"
    (selected,) = [one for one in explained["implementations"] if one["selected"]]
    assert selected["name"] == report["implementation"]
    assert selected["plan"]
    assert main(["info", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["implementations"]
    chosen = {one["op"]: one["name"] for one in listed if one["selected"]}  # the GPU's come last
    assert list(chosen) == op_names()
    assert all(name.startswith("cuda/") for name in chosen.values())
