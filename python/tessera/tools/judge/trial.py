"""Runs a snippet in a new interpreter, and returns the outcome.

That interpreter loads no code of the judge before the snippet has ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tessera.tools.judge.call import Call
from tessera.tools.judge.clock import Clock, TimeUpError
from tessera.tools.judge.faults import faults_of
from tessera.tools.judge.process import Death, death_of, last_line
from tessera.tools.judge.runner import Runner
from tessera.tools.judge.search import Key
from tessera.tools.judge.worker import Outcome, changed_inputs

_PROGRAM = """
import sys
names, failure = {"__name__": "__main__"}, None
try:
    with open(sys.argv[1]) as file:
        exec(compile(file.read(), "snippet", "exec"), names)
except BaseException as error:
    failure = error
from tessera.tools.judge.left_behind import write_outcomes
write_outcomes(names, failure, *sys.argv[2:])
"""
# An interpreter may take this much longer than a forked process until it makes the calls.
_TIMES_TO_START, _SECONDS_TO_START = 5.0, 3.0


class Trial:
    """Runs snippets in the folder of the implementation."""

    def __init__(self, runner: Runner, folder: str, clock: Clock) -> None:
        self._runner = runner
        self._folder = folder
        self._clock = clock

    def limit(self, call: Call) -> float:
        """Seconds after which a snippet whose last call is this one counts as hanging."""
        started = self._runner.seconds_to_start * _TIMES_TO_START + _SECONDS_TO_START
        return started + self._runner.pace.limit(call.num_words, self._runner.detected.device)

    def breaks(self, text: str, program: tuple[Call, ...], key: Key) -> bool:
        """Whether the text, which makes the calls of the program, breaks the rule of the key.

        Raises:
            TimeUpError: the time of the command ended before the snippet did.
        """
        outcome, before, inputs = self._run(text, self.limit(program[-1]))
        call = program[-1]
        if isinstance(outcome, Outcome):
            outcome = outcome._replace(changed=changed_inputs(call, inputs))
        return any(fault.key == key for fault in faults_of(call, outcome, before))

    def _run(self, text: str, limit: float) -> tuple[Outcome | Death, Outcome | None, Any]:
        with tempfile.TemporaryDirectory(prefix="tessera-verify-") as name:
            snippet, result, log = (Path(name) / one for one in ("snippet", "result", "stderr"))
            snippet.write_text(text)
            detected = self._runner.detected
            arguments = [str(snippet), detected.arrays, detected.device, str(result)]
            wait = self._clock.left(limit)
            with log.open("wb") as errors:
                process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, *arguments],
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
            try:
                code = process.wait(wait)
            except subprocess.TimeoutExpired:
                if wait < limit:
                    raise TimeUpError from None
                return Death(limit, "", last_line(log)), None, {}
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if not result.exists():
                return death_of(code, last_line(log)), None, {}
            outcome, before, inputs = pickle.loads(result.read_bytes())
        if outcome.lost:
            return Death(None, "device lost", outcome.lost), None, {}
        return outcome, before, inputs
