"""Threads: of Python beside a call, of the library inside it, and after a fork."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import tessera
from programs import run_program
from tessera._op import op_names
from tessera.contract import synthetic_topk_ids


def test_number_of_threads_does_not_change_a_bit() -> None:
    topk_ids = synthetic_topk_ids(65536, 200, 4, zipf=True, seed=5)
    one = tessera.align_block_size(topk_ids, block_size=32, num_experts=200, num_threads=1)
    assert not tessera.contract_violations(topk_ids, one, block_size=32, num_experts=200)
    for num_threads in (None, 2, 3, 16):
        found = tessera.align_block_size(
            topk_ids, block_size=32, num_experts=200, num_threads=num_threads
        )
        for got, want in zip(found, one, strict=True):
            np.testing.assert_array_equal(got, want)


FEW = np.arange(32, dtype=np.int32)
SMALL: dict[str, Any] = {"block_size": 1, "num_experts": 64}
MANY_EXPERTS: dict[str, Any] = {"block_size": 1, "num_experts": 1 << 25}
MANY = 1 << 25


def out_of(num_slots: int, num_blocks: int) -> dict[str, Any]:
    return {"out": tuple(np.zeros(length, np.int32) for length in (num_slots, num_blocks, 1))}


def align(topk_ids: Any, **options: Any) -> Callable[[], object]:
    return partial(tessera.align_block_size, topk_ids, **options)


def batched(**options: Any) -> Callable[[], object]:
    return partial(tessera.batched_align_block_size, FEW, block_size=1, **options)


def lora(**options: Any) -> Callable[[], object]:
    mapping = np.zeros(len(FEW), np.int32)
    return partial(tessera.lora_align_block_size, FEW, mapping, num_experts=64, **options)


def checker() -> Callable[[], object]:
    ids = np.tile(np.arange(64, dtype=np.int8), 1 << 15)
    found = tessera.align_block_size(ids, **SMALL)
    return partial(tessera.contract_violations, ids, found, **SMALL)


def experts_map() -> Any:
    return np.zeros(MANY_EXPERTS["num_experts"], np.int32)


# What makes a call long, one thing at a time.
LONG_CALLS: dict[str, Callable[[], Callable[[], object]]] = {
    "ids": lambda: align(
        np.tile(np.arange(64, dtype=np.int8), 1 << 18),
        **{"block_size": 128, "num_experts": 64, "num_threads": 1},
    ),
    "counts of experts": lambda: align(FEW, **MANY_EXPERTS, expert_counts=experts_map()),
    "block size": lambda: align(FEW, block_size=1 << 20, num_experts=64),
    "length of sorted_token_ids": lambda: align(FEW, **SMALL, **out_of(MANY, 32)),
    "length of expert_ids": lambda: align(FEW, **SMALL, **out_of(32, MANY)),
    "statistics, with outputs": lambda: align(
        FEW, **SMALL, **out_of(32, MANY), statistics=np.empty(6)
    ),
    "validation": lambda: align(FEW, **MANY_EXPERTS, validate=True, expert_map=experts_map()),
    "batched": lambda: batched(max_tokens_per_batch=1 << 20),
    "batched, with outputs": lambda: batched(max_tokens_per_batch=1, **out_of(MANY, 32)),
    "lora": lambda: lora(block_size=1 << 18, max_loras=8),
    "lora, with outputs": lambda: lora(block_size=1, max_loras=1, **out_of(MANY, 32)),
    "input of moe_sum": lambda: partial(tessera.moe_sum, np.ones((1, 20000, 2048), np.float32)),
    "logits of select_experts": lambda: partial(
        tessera.select_experts, np.ones((1, 1 << 22), np.float32), top_k=1, num_threads=1
    ),
    "checker": checker,
}


def ticks_during(call: Callable[[], object]) -> tuple[float, list[float]]:
    """How many seconds a call takes, and when another thread runs in the middle half of it."""
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    other = threading.Thread(target=tick)
    other.start()
    try:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
    finally:
        stop.set()
        other.join()
    # With the interpreter lock held there would be none, but for a switch just before or after.
    margin = (end - start) / 4
    return end - start, [moment for moment in ticks if start + margin < moment < end - margin]


@pytest.mark.parametrize("reason", LONG_CALLS)
def test_long_calls_let_other_threads_run(reason: str) -> None:
    call = LONG_CALLS[reason]()
    # A busy machine may leave the other thread waiting for all of a call.
    seconds = []
    for _ in range(10):
        duration, ticks = ticks_during(call)
        if ticks:
            return
        seconds.append(duration)
    if max(seconds) < 0.012:
        pytest.skip(f"a call took {1000 * max(seconds):.1f} ms, too few to see another thread")
    pytest.fail(f"ten calls took up to {max(seconds):.3f} s, and no other thread ran")


LOCKS = """
from tessera._library import load
from tessera._op import Op, op_names
for op in map(Op, op_names()):
    print(op.name, [function.release_gil for function in (
        op.sizes, op.explain, op.checker, op.call, op.joined, op.plain, op.joined_plain)])
print(load().function("version").release_gil)
"""


@pytest.mark.parametrize("default", ["0", "1"])
def test_the_ffi_s_default_does_not_decide(default: str) -> None:
    program = [sys.executable, "-c", LOCKS]
    done = run_program(program, TVM_FFI_RELEASE_GIL_BY_DEFAULT=default)
    locks = str([True] * 3 + [False] * 4)
    assert done.stdout.splitlines() == [*(f"{name} {locks}" for name in op_names()), "True"]


@pytest.mark.parametrize(
    ("options", "is_short"),
    [
        ({"block_size": 16, "num_experts": 64}, True),
        ({"block_size": 1, "num_experts": 16383}, True),
        ({"block_size": 1, "num_experts": 16384}, False),
        ({"block_size": 511, "num_experts": 64}, True),
        ({"block_size": 512, "num_experts": 64}, False),
        ({**SMALL, **out_of(16383, 16383)}, True),
        ({**SMALL, **out_of(16384, 32)}, False),
        ({**SMALL, **out_of(32, 16384)}, False),
        ({"block_size": 1, "num_experts": 16384, **out_of(32, 32)}, False),
    ],
)
@pytest.mark.parametrize("num_threads", [None, 1])
def test_short_calls_keep_the_lock(
    options: dict[str, Any], is_short: bool, num_threads: int | None
) -> None:
    ready = threading.Event()
    ran: list[bool] = []

    def wait_for_the_lock() -> None:
        ready.set()
        time.sleep(0.02)
        ran.append(True)

    other = threading.Thread(target=wait_for_the_lock)
    tessera.align_block_size(FEW, **options, num_threads=num_threads)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # so that the other thread runs only if this one lets it
    try:
        other.start()
        ready.wait()
        start = time.perf_counter()
        while time.perf_counter() < start + 0.1:
            pass
        assert not ran
        # A thread may miss a lock that is free for some microseconds many times before it gets it.
        end = time.monotonic() + (1 if is_short else 60)
        while not ran and time.monotonic() < end:
            tessera.align_block_size(FEW, **options, num_threads=num_threads)
        assert bool(ran) is not is_short
    finally:
        sys.setswitchinterval(interval)
        other.join()


WORKSPACE = """
import sys
import numpy as np
import tessera
from tessera._outputs import output_sizes

def resident():
    with open("/proc/self/statm") as memory:
        return int(memory.read().split()[1]) * 4096

ids = np.zeros(1 << 20, dtype=np.int32)  # so many that experts are counted in a table
mapping = np.zeros(1 << 20, dtype=np.int32)
call = dict(block_size=1, num_experts=1 << 25)
tessera.align_block_size(ids[:32], block_size=4, num_experts=32)
before = resident()
tessera.align_block_size(ids, **call, num_threads=1)
tessera.lora_align_block_size(ids, mapping, **call, max_loras=1)
print(output_sizes(len(ids), **call, pad_sorted_ids=False)[2], resident() - before)
"""


def test_a_thread_keeps_little_of_its_workspace() -> None:
    done = run_program([sys.executable, "-c", WORKSPACE])
    assert done.stderr == ""
    asked, kept = map(int, done.stdout.split())
    assert asked > 64 << 20
    assert kept < asked // 8, f"{kept} bytes stay resident of {asked}"


NO_MEMORY = """
import resource
import numpy as np
import tessera
from tessera._outputs import output_sizes

ids = np.zeros(1 << 21, dtype=np.int32)  # so many that experts are counted in a table
mapping = np.zeros(1 << 21, dtype=np.int32)
call = dict(block_size=1, num_experts=1 << 27)
tessera.align_block_size(ids[:32], block_size=4, num_experts=32, num_threads=1)
print(output_sizes(len(ids), **call, pad_sorted_ids=False)[2])
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), -1))
try:
    tessera.align_block_size(ids, **call, num_threads=1)
except RuntimeError as error:
    print(type(error).__name__, error)
try:
    tessera.lora_align_block_size(ids, mapping, **call, max_loras=1)
except RuntimeError as error:
    print(type(error).__name__, error)
"""


def test_no_memory_for_a_workspace_is_an_error() -> None:
    done = run_program([sys.executable, "-c", NO_MEMORY])
    assert done.stderr == ""
    asked, *errors = done.stdout.splitlines()
    assert int(asked) >= 512 << 20
    form = "RuntimeError {}: workspace: expected {} bytes of host memory, got none"
    assert errors[0] == form.format("align_block_size", asked)
    lora_form = form.format("lora_align_block_size", r"\d+")
    assert len(errors) == 2
    assert re.fullmatch(lora_form, errors[1])


def test_calls_from_many_threads_at_once() -> None:
    inputs = [synthetic_topk_ids(20_000, 64, 2, seed=seed) for seed in range(4)]
    failures: list[str] = []

    def work(topk_ids: object) -> None:
        for _ in range(10):
            found = tessera.align_block_size(topk_ids, block_size=64, num_experts=64)
            failures.extend(
                violation.message
                for violation in tessera.contract_violations(
                    topk_ids, found, block_size=64, num_experts=64
                )
            )

    threads = [threading.Thread(target=work, args=(topk_ids,)) for topk_ids in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


FORK = """
import os, signal, sys
import numpy as np, tessera
from tessera.contract import synthetic_topk_ids

topk_ids = synthetic_topk_ids(262144, 64, 2, seed=1)
def call():
    return tessera.align_block_size(topk_ids, block_size=64, num_experts=64, num_threads=2)
before = call()
child = os.fork()
if child == 0:
    signal.alarm(20)  # a child that waits for threads it does not have ends here
    same = all(map(np.array_equal, before, call()))
    os._exit(0 if same else 3)
_, status = os.waitpid(child, 0)
assert all(map(np.array_equal, before, call()))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_can_call() -> None:
    done = run_program([sys.executable, "-W", "ignore", "-c", FORK])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("num_threads", [0, 1, 2**31 - 1])
def test_any_number_of_threads_may_be_asked_for(num_threads: int) -> None:
    topk_ids = synthetic_topk_ids(65536, 8, 2, seed=2)
    found = tessera.align_block_size(
        topk_ids, block_size=16, num_experts=8, num_threads=num_threads
    )
    assert not tessera.contract_violations(topk_ids, found, block_size=16, num_experts=8)
