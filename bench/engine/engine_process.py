"""Runs an engine's process, within a time limit: takes its records, and keeps its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# Lines of a failed process's log that are printed, and of Tessera's lines in it that are kept.
_SHOWN, _KEPT = 40, 10


def stop(process: subprocess.Popen[str]) -> None:
    """Kill a process that leads a session, and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run(
    command: list[str],
    *,
    environment: dict[str, str],
    mark: str,
    take: Callable[[dict[str, Any]], None],
    log: Path,
    limit_s: float,
) -> tuple[str | None, list[str]]:
    """Run a command until it ends.

    Args:
        command: the program and its arguments.
        environment: all of its environment variables.
        mark: how a line begins that is a record; the rest is a JSON object whose `record` says
            what it is. Its last one is an `end`.
        take: is called with each record.
        log: where all other lines are written.
        limit_s: the process is killed after this time.

    Returns:
        Why the process failed, or None; and the lines of its log that name Tessera.
    """
    said: list[str] = []
    last: deque[str] = deque(maxlen=_SHOWN)
    with (
        log.open("w") as file,
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            stop(process)

        timer = threading.Timer(limit_s, end)
        timer.start()
        try:
            for line in process.stdout:
                if line.startswith(mark):
                    record = json.loads(line.removeprefix(mark))
                    take(record)
                    if record["record"] == "end":
                        break  # a child that outlives the process may hold its output open
                    continue
                file.write(line)
                last.append(line)
                if "Tessera" in line and len(said) < _KEPT:
                    said.append(line.strip())
            code = process.wait()
        finally:
            timer.cancel()
            stop(process)
    if code == 0:
        return None, said
    print("".join(last), file=sys.stderr, flush=True)
    why = f"took longer than {limit_s:g} s" if is_late.is_set() else f"exit code {code}"
    return why, said
