"""Threads: of Python beside a call, of the library inside it, and after a fork."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest

import tessera
from programs import run_program
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


def test_long_calls_let_other_threads_run() -> None:
    topk_ids = np.tile(np.arange(64, dtype=np.int8), 1 << 18)
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
        tessera.align_block_size(topk_ids, block_size=128, num_experts=64, num_threads=1)
        end = time.perf_counter()
    finally:
        stop.set()
        other.join()
    # With the interpreter lock held there would be none, but for a switch just before or after.
    margin = (end - start) / 4
    inside = [moment for moment in ticks if start + margin < moment < end - margin]
    assert len(inside) >= 2, f"the call took {end - start:.3f} s"


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
