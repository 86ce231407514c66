"""Detects measurements spoiled by other programs, from the time this process waits for a CPU."""

from __future__ import annotations

from pathlib import Path

# The share of a repetition that the process's threads may have waited. On an idle machine it stays
# below 1%; contenders that differ by less than 5% count as equal.
SPOILED_ABOVE = 0.05

_THREADS = Path("/proc/self/task")


def waited_seconds() -> float:
    """Seconds that this process's threads, since each began, were ready to run but did not.

    The kernel counts this. A sleeping thread, such as an idle worker of a pool, adds nothing. The
    result is 0 if the system does not count.
    """
    nanoseconds = 0
    for thread in _THREADS.iterdir() if _THREADS.is_dir() else ():
        try:
            nanoseconds += int((thread / "schedstat").read_text().split()[1])
        except OSError:  # a thread that has ended, or a kernel that does not count
            continue
    return nanoseconds / 1e9
