"""Keeps a process that makes calls, and restarts it when a call has killed or hung it."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from multiprocessing import connection, forkserver, get_context
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tessera.tools.judge.call import Call
from tessera.tools.judge.clock import Clock, TimeUpError
from tessera.tools.judge.forms import arguments_of
from tessera.tools.judge.worker import Detected, Outcome, Refused, Target, serve

# A call counts as hanging if it takes this many times as long as the slowest before it, per call or
# per word that it reads and writes, within these bounds. The very first call may have to compile
# kernels or wake a device.
_TIMES_AS_LONG = 20.0
_LEAST_SECONDS, _MOST_SECONDS = 2.0, 30.0
_FIRST_SECONDS, _FIRST_SECONDS_ON_A_DEVICE = 10.0, 60.0
# The latest calls of a process are remembered, up to this total number of words.
_REMEMBERED_WORDS = 1 << 24
# Calls with fewer words take no less time.
_FEWEST_WORDS = 1 << 14
_START_SECONDS = 300.0  # importing an engine and its kernels may take as long
_LOG_LINE_LENGTH = 200


class Death(NamedTuple):
    """A call that the process did not survive.

    hung: seconds after which the judge ended it; None if it died by itself.
    how: the signal or exit code; "device lost" if the process can no longer use the device.
    last_words: the last line that the process wrote to stderr, or the device's error.
    """

    hung: float | None
    how: str
    last_words: str


_SERVER = get_context("forkserver")


def start_server(target: Target) -> None:
    """Start the process that all others are forked from, without waiting until it is ready."""
    # It imports slow modules once. These imports neither start threads nor open a device.
    modules = ["worker"] if target.arrays == "numpy" else ["worker", "torch_first"]
    _SERVER.set_forkserver_preload([f"tessera.tools.judge.{name}" for name in modules])
    forkserver.ensure_running()


class Pace:
    """The durations of calls, and the limit after which a call counts as hanging."""

    def __init__(self) -> None:
        self._slowest = self._slowest_word = 0.0

    def note(self, call: Call, seconds: float) -> None:
        """Take a finished call into account."""
        self._slowest = max(self._slowest, seconds)
        self._slowest_word = max(self._slowest_word, seconds / max(call.num_words, _FEWEST_WORDS))

    def limit(self, call: Call, device: str) -> float:
        """Seconds that the call may take."""
        if not self._slowest:
            return _FIRST_SECONDS if device == "cpu" else _FIRST_SECONDS_ON_A_DEVICE
        of_words = self._slowest_word * max(call.num_words, _FEWEST_WORDS)
        limit = max(self._slowest, of_words) * _TIMES_AS_LONG
        return min(max(limit, _LEAST_SECONDS), _MOST_SECONDS)


class Runner:
    """Makes calls of an implementation, each in a process that is still alive.

    detected: form, arguments, arrays and device, as the process found them.
    fresh: whether the next call will be the first one of its process.
    history: the latest calls that the process has answered with outputs.
    seconds_to_start: the time to start the process.
    pace: durations of calls, shared with other runners.

    Raises:
        ValueError: the implementation cannot be judged at all.
    """

    def __init__(self, target: Target, clock: Clock, pace: Pace) -> None:
        self._target = target
        self._clock = clock
        self._folder = tempfile.TemporaryDirectory(prefix="tessera-verify-")
        self._log = Path(self._folder.name) / "stderr"
        self._process: Any = None
        self._connection: Any = None
        self.pace = pace
        self.fresh = True
        self.history: list[Call] = []
        self._words = 0
        self.seconds_to_start = 0.0
        try:
            self.detected = self._start()
        except BaseException:
            self._end()
            self._folder.cleanup()
            raise

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._end()
        self._folder.cleanup()

    def restart(self) -> None:
        """Let the next call be the first one of its process."""
        if not self.fresh:
            self._end()

    def run(self, call: Call) -> Outcome | Death:
        """Make the call."""
        if self._process is None:
            self._start()
        limit = self.pace.limit(call, self.detected.device)
        self.fresh = False
        with contextlib.suppress(BrokenPipeError):
            self._connection.send((call, arguments_of(self.detected.judged, call)))
        reply = self._reply(limit)
        if isinstance(reply, Outcome):
            self.pace.note(call, reply.seconds)
            if not reply.lost:
                if reply.outputs:
                    self._remember(call)
                return reply
            self._end()
            return Death(None, "device lost", reply.lost)
        assert isinstance(reply, Death)
        return reply

    def _remember(self, call: Call) -> None:
        self.history.append(call)
        self._words += call.topk_ids.size
        while self._words > _REMEMBERED_WORDS:
            self._words -= self.history.pop(0).topk_ids.size

    def _start(self) -> Detected:
        started = time.monotonic()
        ours, theirs = _SERVER.Pipe()
        arguments = (theirs, self._target, str(self._log))
        self._process = _SERVER.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._connection = ours
        reply = self._reply(_START_SECONDS)
        if isinstance(reply, Detected):
            self.seconds_to_start = time.monotonic() - started
            return reply
        if isinstance(reply, Refused):
            self._end()
            raise ValueError(reply.message)
        assert isinstance(reply, Death)
        died = f"hung for {reply.hung:.0f} s" if reply.hung else f"died with {reply.how}"
        raise ValueError(
            f"--impl: {self._target.implementation} cannot be imported: its process {died}: "
            f"{reply.last_words}"
        )

    def _reply(self, limit: float) -> object:
        """The process's answer, or its death if there is none within `limit` seconds.

        Raises:
            TimeUpError: the time of the command ended before the limit.
        """
        wait = self._clock.left(limit)
        ready = connection.wait([self._connection, self._process.sentinel], wait)
        if self._connection in ready:
            with contextlib.suppress(EOFError, ConnectionResetError):
                return self._connection.recv()
        if not ready:
            self._end()
            if wait < limit:
                raise TimeUpError
            return Death(limit, "", last_line(self._log))
        self._process.join()
        code = self._process.exitcode
        self._end()
        return death_of(code, last_line(self._log))

    def _end(self) -> None:
        if self._process is not None:
            # Includes all processes that it has started, if it already leads a group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None
            self.history, self._words = [], 0
            self.fresh = True


def last_line(log: Path) -> str:
    """The last non-blank line of a file."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    written = [line.strip() for line in lines if line.strip()]
    return written[-1][:_LOG_LINE_LENGTH] if written else ""


def death_of(code: int, words: str) -> Death:
    """How a process with this exit code died."""
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Death(None, how, words)
