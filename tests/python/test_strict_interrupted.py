"""Strict mode while threads, signal handlers, finalizers, forks and exceptions come in between."""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest

import tessera
from programs import run_program
from strict_device import (
    BAD,
    NUM_INVALID,
    OPTIONS,
    Device,
    InterruptError,
    assert_sound,
    call,
    defer,
    found,
    stand_in,
)
from tessera import strict


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with stand_in(monkeypatch) as device:
        yield device


def session(device: Device, total: Callable[[int], None]) -> int:
    """All that can be done in strict mode; how much was invalid."""
    for _ in range(4):  # the third and the fourth find too many unread
        call()
    device.stream, device.capturing = "capture", {"capture"}
    call()
    device.stream, device.capturing = "first", set()
    (captured,) = strict._reports.captured or [None]
    if captured is not None:
        captured.array[:] = [1, 3, -5, 0, -1, 0]  # what a replay writes
    for ids in (BAD, np.array([[0, 1]], np.int32)):
        try:
            tessera.align_block_size(ids, validate="now", **OPTIONS)
        except tessera.InvalidRoutingError:
            total(NUM_INVALID)
    with pytest.raises(ValueError, match="expert_map"):
        call(expert_map=BAD)
    call()
    total(found())
    return 6 * NUM_INVALID + (captured is not None)


def lines_of_strict(step: Callable[[FrameType], None]) -> Any:
    """For `sys.settrace`: runs a step before every line of the module."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != strict.__file__:
            return None
        if event == "line":
            step(frame)
        return trace

    return trace


@pytest.mark.parametrize("with_call", [False, True])
def test_a_check_at_every_line_of_calls_and_checks(
    device: Device, monkeypatch: pytest.MonkeyPatch, with_call: bool
) -> None:
    """As from a signal handler or a finalizer."""
    monkeypatch.setattr(strict, "MAX_UNREAD", 2)
    monkeypatch.setattr(strict, "_PIECE", 8)
    totals: list[int] = []
    before = sys.gettrace()
    for turn in range(10_000):
        monkeypatch.setattr(strict, "_reports", strict._Reports())
        del totals[:]
        left = turn

        def step(frame: FrameType) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                stream, device.stream, capturing = device.stream, "handler", device.capturing
                if with_call:
                    call()
                    totals.append(-NUM_INVALID)
                totals.append(found())
                device.stream, device.capturing = stream, capturing

        sys.settrace(lines_of_strict(step))
        try:
            expected = session(device, totals.append)
        finally:
            sys.settrace(before)
        totals.append(found())
        assert sum(totals) == expected, turn
        assert_sound()
        if left >= 0:
            break
    assert turn > 200


def test_an_exception_at_every_line_of_a_check(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler that raises loses no finding and makes none appear twice.

    The last lines are left out: a finding that `check` is about to return goes with the exception.
    So are the first lines of a `finally`, where Python runs no signal handler.
    """
    lines, first = inspect.getsourcelines(strict._Reports.read)
    last = first + lines.index("        finally:\n")
    monkeypatch.setattr(strict, "_PIECE", 8)
    before = sys.gettrace()
    for turn in range(10_000):
        for stream in ("first", "second"):
            device.stream = stream
            call()
        left = turn

        def step(frame: FrameType) -> None:
            nonlocal left
            name = frame.f_code.co_name
            left -= name != "check" and not (name == "read" and frame.f_lineno >= last)
            if left < 0:
                raise InterruptError

        sys.settrace(lines_of_strict(step))
        try:
            total = found()
        except InterruptError:
            total = found()
        finally:
            sys.settrace(before)
        assert total == 2 * NUM_INVALID, turn
        if left >= 0:
            break
    assert turn > 80


def test_threads_that_call_and_check(monkeypatch: pytest.MonkeyPatch) -> None:
    defer(monkeypatch)
    monkeypatch.setattr(strict, "MAX_UNREAD", 8)
    interval = sys.getswitchinterval()
    totals: list[int] = []

    def work(number: int) -> None:
        for turn in range(400):
            call()
            if turn % (number + 2) == 0:
                totals.append(found())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sum(totals) + found() == 6 * 400 * NUM_INVALID
    assert_sound()


PRELUDE = """
import gc, os, signal, sys, threading, time
import numpy as np, tessera
from tessera import strict
from tessera._frameworks import FRAMEWORKS
# As if the arrays were on a device, whose calls report later.
FRAMEWORKS[np.ndarray] = FRAMEWORKS[np.ndarray].but(current_stream=lambda index: "first")
ids = np.array([0, 99], np.int32)
num_calls = 0
totals = []
def call(validate=True):
    tessera.align_block_size(ids, block_size=4, num_experts=8, validate=validate)
def check():
    return tessera.check(raise_invalid=False)
def in_child(work):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that waits for threads it does not have ends here
        os._exit(0 if work() else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
call(False)  # a fork while another thread imports modules is Python's to survive
"""

CHILD = """
call()
def work():
    if check() != 0:
        return False
    call()
    try:
        call("now")
    except tessera.InvalidRoutingError:
        return check() == 1 and check() == 0
in_child(work)
assert check() == 1
"""

FORKS_BESIDE_THREADS = """
stop = False
def work():
    while not stop:
        call()
        numbers.append(1)
        if len(numbers) % 3 == 0:
            totals.append(check())
def child():
    call()
    return check() == 1
numbers = []
sys.setswitchinterval(1e-5)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
try:
    for _ in range(60): in_child(child)
finally:
    stop = True
    for thread in threads: thread.join()
assert sum(totals) + check() == len(numbers) > 60
"""

FORKS_AT_EVERY_LINE = """
strict.MAX_UNREAD, strict._PIECE = 2, 8
num_forks = 0
def child():
    call()
    return check() == 1
def trace(frame, event, argument):
    global num_forks
    if frame.f_code.co_filename != strict.__file__: return None
    if event == "line":
        in_child(child)
        num_forks += 1
    return trace
sys.settrace(trace)
for _ in range(4): call()
found = check()
sys.settrace(None)
assert found == 4 and num_forks > 60
"""

# A child that was forked in the middle of a check, and goes on with it.
FORK_INSIDE_A_CHECK = """
child = None
def zero(array):
    global child
    if child is None:
        child = os.fork()
    array[:] = 0
FRAMEWORKS[np.ndarray] = FRAMEWORKS[np.ndarray].but(zero=zero)
call()
found = check()
if child == 0:
    os._exit(3 if found else 0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert found == 1
"""

HANDLER_AND_FINALIZER = """
busy = False
def interrupt(*_):
    global busy
    if not busy:
        busy = True
        totals.append(check())
        busy = False
class Garbage:
    def __init__(self): self.itself = self
    def __del__(self): interrupt()
signal.alarm(50)  # a deadlock ends here
signal.signal(signal.SIGVTALRM, interrupt)
signal.setitimer(signal.ITIMER_VIRTUAL, 0.0003, 0.0003)
strict.MAX_UNREAD = 16
gc.set_threshold(50, 2, 2)
end = time.monotonic() + 2
while time.monotonic() < end:
    call()
    num_calls += 1
    if num_calls % 3 == 0:
        Garbage()
    if num_calls % 5 == 0:
        totals.append(check())
signal.setitimer(signal.ITIMER_VIRTUAL, 0)
assert sum(totals) + check() == num_calls, (sum(totals), num_calls)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize(
    "program",
    [CHILD, FORKS_BESIDE_THREADS, FORKS_AT_EVERY_LINE, FORK_INSIDE_A_CHECK, HANDLER_AND_FINALIZER],
    ids=["child", "beside_threads", "at_every_line", "inside_a_check", "handler_and_finalizer"],
)
def test_forks_handlers_and_finalizers(program: str) -> None:
    done = run_program([sys.executable, "-W", "ignore", "-c", PRELUDE + program])
    assert (done.returncode, done.stderr) == (0, "")
