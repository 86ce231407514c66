"""`--device cpu`: what a program written for a GPU gets on the CPU."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from launching import TIMED, launch, output

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
    "a number in the name": torch.randperm(4, device="cuda:0"),
    "a number": torch.zeros(2, device=0),
    "a device": torch.tensor([1], device=torch.device("cuda", 0)),
    "like another": torch.empty_like(x, device="cuda"),
    "of another": x.new_empty(3, device="cuda"),
    "to": x.to("cuda"),
    "to a device": x.to(torch.device("cuda"), torch.int32, non_blocking=True),
    "to a number": x.to(0),
    "pinned when made": torch.randn(2, pin_memory=True),
    "of a number": torch.zeros(2, device=torch.device(0)),
    "a module to a number": torch.nn.Linear(2, 2).to(0).weight,
    "by a generator": torch.rand(2, generator=torch.Generator(device="cuda:0").manual_seed(1)),
    "of a type": torch.cuda.FloatTensor(2),
    "to the name of a type": x.type("torch.cuda.FloatTensor"),
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
for device in ("cuda", "cuda:0", 0):
    assert isinstance(torch.Generator(device), torch.Generator)
    assert isinstance(torch.Generator(device=device), torch.Generator)
for device in (torch.device("cuda", 0), torch.device(type="cuda", index=0), torch.device(0),
               torch.device("cuda", index=0), torch.device("cuda:0"), torch.device(type="cuda")):
    assert device == x.device and device.index is None
assert isinstance(torch.default_generator, torch.Generator)
assert x.record_stream(torch.cuda.Stream()) is None
for dtype in (torch.bfloat16, torch.float16, None):
    with torch.autocast("cuda", dtype, True):
        product = torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")
    assert product.dtype == (dtype or torch.float16)
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


def test_a_backward_pass_is_redirected(tmp_path: Path) -> None:
    script = """
import torch
from torch.utils.checkpoint import checkpoint
class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 3
    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.full((1,), 3.0, device="cuda")
def tripled(x):
    return x * torch.full((1,), 3.0, device="cuda")
x = torch.ones(2, device="cuda", requires_grad=True)
hooked = x * 3
hooked.register_hook(lambda gradient: gradient + torch.zeros(2, device=0))
results = [Tripled.apply(x), hooked, *(checkpoint(tripled, x, use_reentrant=way) for way in (0, 1)),
           torch.compile(tripled, backend="eager")(x)]
for result in results:
    if result is not results[3]:  # of a kind of checkpoint that refuses this
        assert torch.autograd.grad(result.sum(), x, retain_graph=True)[0].tolist() == [3, 3]
    x.grad = None
    result.sum().backward(retain_graph=True)
    assert x.grad.tolist() == [3, 3]
    torch.autograd.backward(result.sum(), retain_graph=True)
    assert x.grad.tolist() == [6, 6]
assert torch.func.grad(lambda x: tripled(x).sum())(torch.ones(2)).tolist() == [3, 3]
"""
    assert output(tmp_path, script, "--device", "cpu") == ""


SAVE = """
import torch
x = torch.arange(4)
torch.save(x, "cpu.pt")
torch.serialization.register_package(0, lambda storage: "cuda:0", lambda storage, location: None)
torch.save(x, "gpu.pt")
"""


def test_files_are_loaded_onto_the_cpu(tmp_path: Path) -> None:
    output(tmp_path, SAVE, "--device", "cpu")
    script = """
import torch
for file in ("cpu.pt", "gpu.pt"):
    for where in (None, "cuda", "cuda:0", torch.device("cuda"), {"cuda:0": "cuda"},
                  {"cpu": "cuda", "cuda:0": "cpu"}, lambda storage, location: None):
        for weights_only in (True, False):
            x = torch.load(file, map_location=where, weights_only=weights_only)
            assert x.tolist() == [0, 1, 2, 3] and x.device.type == "cpu", (file, where)
assert torch.load("cpu.pt", map_location="meta").device.type == "meta"
"""
    assert output(tmp_path, script, "--device", "cpu") == ""


def test_questions_about_the_gpu_have_answers(tmp_path: Path) -> None:
    script = """
import torch
cuda = torch.cuda
properties = cuda.get_device_properties("cuda:0")
free, total = cuda.mem_get_info(0)
assert 0 < free <= total == properties.total_memory
assert properties.name == cuda.get_device_name() and properties.multi_processor_count > 0
assert (properties.major, properties.minor) == cuda.get_device_capability(0) == (0, 0)
assert not hasattr(properties, "warp_size")
assert cuda.is_bf16_supported() and not cuda.is_current_stream_capturing()
cuda.reset_peak_memory_stats("cuda:0")
assert cuda.max_memory_allocated("cuda:0") == 0 == cuda.memory_stats()["allocated_bytes.all.peak"]
assert "no memory" in cuda.memory_summary("cuda:0") == cuda.memory.memory_summary(abbreviated=True)
assert issubclass(cuda.device, object) and issubclass(cuda.device_of, cuda.device)
assert isinstance(cuda.device("cuda"), cuda.device) and not isinstance(0, cuda.device)
stream = cuda.Stream(device="cuda", priority=-1)
stream.wait_stream(cuda.current_stream())
with cuda.stream(stream), cuda.stream(None), cuda.device_of(torch.ones(1)), cuda.nvtx.range("x"):
    event = stream.record_event(cuda.Event(enable_timing=True))
cuda.current_stream().wait_event(event)
cuda.default_stream("cuda:0").synchronize()
assert isinstance(stream, cuda.Stream) and isinstance(event, cuda.streams.Event) and stream.query()
before = cuda.get_rng_state("cuda:0")
for arguments in ({"devices": [0]}, {}, {"devices": ["cuda:0"], "device_type": "cuda"}):
    with torch.random.fork_rng(**arguments):
        torch.rand(1, device="cuda")
    assert torch.equal(cuda.get_rng_state(), before)
cuda.set_rng_state_all(cuda.get_rng_state_all())
torch.cuda.profiler.start(), torch.cuda.profiler.stop()
"""
    assert output(tmp_path, script, "--device", "cpu") == ""


def test_what_needs_a_gpu_is_refused_in_one_line(tmp_path: Path) -> None:
    script = """
import threading, torch
import torch.cuda.comm
def shown(call, *arguments):
    try:
        call(*arguments)
    except (RuntimeError, AttributeError) as error:
        print(type(error).__name__, error)
cuda, x = torch.cuda, torch.ones(2)
for name in ("CUDAGraph", "MemPool", "cudart", "graph", "utilization", "memory_snapshot"):
    shown(getattr(cuda, name))
shown(cuda._sleep, 1)
shown(cuda.nccl.version)
shown(cuda.comm.broadcast, x, [0])
shown(cuda.memory._record_memory_history)
shown(cuda.jiterator._create_jit_fn, "template <typename T> T f(T x) { return x; }")
shown(cuda.graphs.CUDAGraph)
assert not isinstance(3, cuda.CUDAGraph)
for owner, name in ((cuda.get_device_properties(0), "warp_size"), (cuda.Event(), "ipc_handle"),
                    (cuda.Event(), "cuda_event"), (cuda.Event, "from_ipc_handle"),
                    (cuda.Stream, "priority_range"), (cuda.CUDAGraph, "capture_begin")):
    assert not hasattr(owner, name)
    shown(getattr, owner, name)
for thread in [threading.Thread(target=shown, args=[cuda._lazy_init])]:
    thread.start()
    thread.join()
"""
    refused = "needs a GPU; tessera.vllm --device cpu runs this program on the CPU"
    lines = output(tmp_path, script, "--device", "cpu").splitlines()
    graph, *others = lines[:12]
    assert graph == others[-1] == f"RuntimeError torch.cuda.CUDAGraph: {refused}"
    assert [line.partition(": ")[2] for line in others] == [refused] * 11
    assert all(line.startswith("RuntimeError torch.") for line in others)
    fields = [
        "warp_size of torch.cuda.get_device_properties",
        "ipc_handle of torch.cuda.Event",
        "cuda_event of torch.cuda.Event",
        "from_ipc_handle of torch.cuda.Event",
        "priority_range of torch.cuda.Stream",
        "capture_begin of torch.cuda.CUDAGraph",
    ]
    assert lines[12:-1] == [f"AttributeError {field}: {refused}" for field in fields]
    assert lines[-1] == f"RuntimeError CUDA: {refused}, and redirects no other threads"


def test_no_function_of_torch_cuda_is_left(tmp_path: Path) -> None:
    script = """
import types, torch
cuda = torch.cuda
modules = [cuda, *(module for name, module in vars(cuda).items() if name != "amp"
                   if isinstance(module, types.ModuleType) and not name.startswith("_")
                   if module.__name__ == f"torch.cuda.{name}")]
assert cuda.memory in modules and cuda.nccl in modules
for module in modules:
    for name, member in vars(module).items():
        own = callable(member) and getattr(member, "__module__", None) == module.__name__
        if own and not (isinstance(member, type) and issubclass(member, Exception)):
            if module is not cuda or not name.startswith("_"):
                print(f"{module.__name__}.{name}")
"""
    left = output(tmp_path, script, "--device", "cpu").splitlines()
    assert left == ["torch.cuda.nvtx.range", "torch.cuda.profiler.profile"]


def test_devices_that_are_not_there_are_refused(tmp_path: Path) -> None:
    script = """
import torch
cuda, x, layer = torch.cuda, torch.ones(2), torch.nn.Linear(2, 2)
torch.save(x, "x.pt")
for call in (
    lambda: torch.device("cuda", 1), lambda: torch.device("cuda:1"), lambda: torch.device(1),
    lambda: torch.device(type="cuda", index=1), lambda: torch.zeros(2, device="cuda:1"),
    lambda: torch.zeros(2, device=1), lambda: x.to("cuda:1"), lambda: x.to(1), lambda: x.cuda(1),
    lambda: x.cuda(device="cuda:1"), lambda: layer.cuda(1), lambda: layer.to("cuda:1"),
    lambda: torch.set_default_device(1), lambda: torch.Generator("cuda:1"),
    lambda: torch.Generator(1), lambda: torch.load("x.pt", map_location="cuda:1"),
    lambda: torch.load("x.pt", map_location={"cpu": "cuda:1"}),
    lambda: torch.nn.DataParallel(layer, device_ids=[0, 1]),
    lambda: torch.random.fork_rng([1]).__enter__(), lambda: torch.get_device_module("cuda:1"),
    lambda: cuda.set_device(1), lambda: cuda.set_device("cuda:1"), lambda: cuda.device(1),
    lambda: cuda.synchronize(1), lambda: cuda.memory_allocated(device="cuda:1"),
    lambda: cuda.get_device_properties(1), lambda: cuda.get_device_name("cuda:1"),
    lambda: cuda.Stream(1), lambda: cuda.Stream(device="cuda:1"), lambda: cuda.current_stream(1),
    lambda: cuda.can_device_access_peer(0, 1), lambda: cuda.get_rng_state("cuda:1"),
):
    try:
        call()
    except RuntimeError as error:
        expected = "cuda:1: no such device; tessera.vllm --device cpu has device 0 only"
        assert str(error) == expected, error
    else:
        raise AssertionError(call.__code__.co_firstlineno)
for device in (None, -1, 0, "cuda", "cuda:0", torch.device("cuda", 0)):
    cuda.synchronize(device), cuda.Stream(device), cuda.memory_stats(device)
cuda.set_sync_debug_mode(1), cuda.set_per_process_memory_fraction(1)
"""
    assert output(tmp_path, script, "--device", "cpu") == ""


def test_streams_and_events_keep_their_order(tmp_path: Path) -> None:
    script = """
import torch
cuda, stream = torch.cuda, torch.cuda.Stream()
assert cuda.current_stream() == cuda.default_stream() != stream
with cuda.stream(stream):
    with cuda.stream(None), cuda.Stream() as inner:
        assert cuda.current_stream() == inner != stream
    assert cuda.current_stream() == stream
    with stream, stream:
        pass
    assert cuda.current_stream() == stream != cuda.default_stream()
assert cuda.current_stream() == cuda.default_stream()
cuda.set_stream(stream)
assert cuda.current_stream() == stream
recorded, timed = cuda.Event(), cuda.Event(enable_timing=True)
recorded.record()
for event, wrong in ((recorded, "enable_timing=True"), (timed, "recorded before")):
    try:
        event.elapsed_time(event)
    except ValueError as error:
        assert wrong in str(error), error
    else:
        raise AssertionError(wrong)
"""
    assert output(tmp_path, script, "--device", "cpu") == ""


def test_data_and_modules_take_the_one_device(tmp_path: Path) -> None:
    script = """
import torch
layer, x = torch.nn.Linear(2, 2).cuda(), torch.ones(3, 2)
for where in ({}, {"device_ids": [0]}, {"device_ids": ["cuda:0"], "output_device": "cuda"}):
    assert torch.equal(torch.nn.DataParallel(layer, **where)(input=x), layer(x))
assert torch.equal(torch.nn.parallel.data_parallel(layer, x, [torch.device("cuda")]), layer(x))
for workers in (0, 1):
    loader = torch.utils.data.DataLoader([1, 2], pin_memory=True, num_workers=workers)
    assert [int(batch) for batch in loader] == [1, 2]
for device in (None, "cuda", "cuda:0", torch.device("cuda")):
    assert torch.get_device_module(device) is torch.cuda
assert torch.get_device_module("cpu") is torch.cpu
with torch.autograd.profiler.emit_nvtx(), torch.cuda.profiler.profile():
    torch.cuda.nvtx.range_end(torch.cuda.nvtx.range_start("x"))
assert not torch.cuda.nccl.is_available([x])
assert torch.cuda.sparse.FloatTensor is torch.sparse.FloatTensor
"""
    assert output(tmp_path, script, "--device", "cpu") == ""


def test_profilers_and_compilers_take_the_cpu(tmp_path: Path) -> None:
    script = """
import torch
from torch.profiler import ProfilerActivity, profile
for activities in (None, [ProfilerActivity.CUDA], [ProfilerActivity.CPU, ProfilerActivity.CUDA]):
    with profile(activities=activities) as times:
        torch.ones(3, device="cuda").sum()
    assert "aten::sum" in times.key_averages().table(sort_by="cuda_time_total")
    assert all(event.device_time_total == 0 for event in times.key_averages())
with torch.autograd.profiler.profile(use_device="cuda") as times:
    torch.ones(3, device="cuda").sum()
assert any(event.key == "aten::sum" for event in times.key_averages())
compiled = torch.compile(lambda x: x * 2 + 1, fullgraph=True)
assert compiled(torch.ones(2, device="cuda")).tolist() == [3, 3]
"""
    (tmp_path / "script.py").write_text(script)
    done = launch(tmp_path, "--device", "cpu", "script.py")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    # Versions of torch tell in a few lines when a profiler starts; for a GPU's events that it could
    # not record it has hundreds.
    assert "CUDA event" not in done.stderr and len(done.stderr.splitlines()) < 12
