"""Whether other programs spoil a measurement: how long this process waits for a processor."""

from __future__ import annotations

from pathlib import Path

# Of a repetition, how long its threads may have waited. An idle machine stays below 1%; 5% is what
# contenders are told apart by.
SPOILED_ABOVE = 0.05

_THREADS = Path("/proc/self/task")


def waited_seconds() -> float:
    """How long this process's threads were ready to run and did not, since each began.

    The kernel's own count, to which a thread that sleeps, as those of a pool do, does not add. 0
    where the system does not tell.
    """
    nanoseconds = 0
    for thread in _THREADS.iterdir() if _THREADS.is_dir() else ():
        try:
            nanoseconds += int((thread / "schedstat").read_text().split()[1])
        except OSError:  # a thread that has ended, or a kernel that does not count
            continue
    return nanoseconds / 1e9
