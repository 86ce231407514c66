"""A fork while another thread makes the first call of the process, which loads the library."""

from __future__ import annotations

import sys

from programs import run_program

FORK = """
import os
import signal
import threading
import time
import numpy as np
import tessera
from tessera import _library

begun = threading.Event()
make = _library.Library.__init__

def slowly(self):
    begun.set()
    time.sleep(0.3)
    make(self)

_library.Library.__init__ = slowly
ids = np.array([0, 9], np.int32)

found = []

def call():
    try:
        tessera.align_block_size(ids, block_size=4, num_experts=4, validate=True)
    except tessera.InvalidRoutingError:
        found.append(1)

thread = threading.Thread(target=call)
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    try:
        call()
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(len(found))
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
thread.join()
print("parent", len(found), flush=True)
found.clear()
child = os.fork()
if child == 0:
    signal.alarm(20)
    call()
    os._exit(len(found))
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_without_the_loading_thread_says_so_and_later_ones_work() -> None:
    done = run_program([sys.executable, "-c", FORK])
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "tessera: expected no fork while another thread makes the first call of the process, got "
        "one (tessera.version() before the fork loads all that calls need)",
        "child 0",
        "parent 1",
        "child 1",
    ]
