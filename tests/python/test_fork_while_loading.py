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

def call():
    tessera.align_block_size(ids, block_size=4, num_experts=4, validate=True)

thread = threading.Thread(target=call)
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    call()
    os._exit(tessera.check(raise_invalid=False))
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), tessera.check(raise_invalid=False))
"""


def test_the_child_has_a_whole_library() -> None:
    done = run_program([sys.executable, "-c", FORK])
    assert done.stdout == "1 1\n", done.stderr
