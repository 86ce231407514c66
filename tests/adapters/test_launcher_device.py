"""`--device cpu`: what a program written for a GPU gets on the CPU."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from launching import TIMED, output

pytestmark = [
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
    pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed"),
]


def test_a_script_written_for_a_gpu_runs(tmp_path: Path) -> None:
    stdout = output(tmp_path, TIMED, "--device", "cpu")
    assert re.fullmatch(r"Duration: \d+\.\d{4} seconds\n", stdout)


def test_tensors_end_up_on_the_cpu(tmp_path: Path) -> None:
    script = """
import torch
x = torch.arange(4)
tensors = {
    "a name": torch.zeros(2, device="cuda"),
    "a number in the name": torch.randperm(4, device="cuda:1"),
    "a number": torch.zeros(2, device=0),
    "a device": torch.tensor([1], device=torch.device("cuda", 0)),
    "like another": torch.empty_like(x, device="cuda"),
    "of another": x.new_empty(3, device="cuda"),
    "to": x.to("cuda"),
    "to a device": x.to(torch.device("cuda"), torch.int32, non_blocking=True),
    "cuda": x.cuda(),
    "cuda of a number": x.cuda(0, non_blocking=True),
    "pinned": x.pin_memory(),
    "a module": torch.nn.Linear(2, 2).cuda().weight,
    "a module to": torch.nn.Linear(2, 2, device="cuda").to("cuda").weight,
}
with torch.device("cuda"):
    tensors["inside a device"] = torch.zeros(2)
torch.set_default_device("cuda")
tensors["of the default device"] = torch.zeros(2)
assert {name for name, tensor in tensors.items() if tensor.device.type != "cpu"} == set()
assert torch.equal(tensors["cuda"], x) and tensors["to a device"].dtype == torch.int32
assert torch.zeros(1, device="meta").device.type == "meta"
"""
    assert output(tmp_path, script, "--device", "cpu") == ""


def test_what_waits_and_asks_for_a_gpu_works(tmp_path: Path) -> None:
    script = """
import time
import torch
assert torch.cuda.is_available() and torch.cuda.device_count() == 1
torch.cuda.set_device(0)
with torch.cuda.device(torch.cuda.current_device()):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    time.sleep(0.05)
    end.record()
    end.synchronize()
    start.wait()
torch.cuda.synchronize()
torch.cuda.empty_cache()
assert end.query() and 50 <= start.elapsed_time(end) < 5000
torch.cuda.manual_seed(3)
first = torch.rand(2, device="cuda")
torch.cuda.manual_seed_all(3)
assert torch.equal(torch.rand(2, device="cuda"), first)
torch.manual_seed(3)
assert torch.equal(torch.rand(2), first)
print(torch.cuda.get_device_name())
"""
    assert output(tmp_path, script, "--device", "cpu") == "CPU, in place of a GPU\n"
