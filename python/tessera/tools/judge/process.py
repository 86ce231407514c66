"""A process that answers requests: one that dies or hangs over a request can be started again."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing import connection, forkserver, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from typing_extensions import Self

from tessera.tools.judge.clock import Clock, TimeUpError
from tessera.tools.judge.worker import Refused, Target

_START_SECONDS = 300.0  # importing an engine and its kernels may take as long
_LOG_LINE_LENGTH = 200


class Death(NamedTuple):
    """A request that the process did not survive.

    hung: seconds after which the judge ended it; None if it died by itself.
    how: the signal or exit code; "device lost" if the process can no longer use the device.
    last_words: the last line that the process wrote to stderr, or the device's error.
    """

    hung: float | None
    how: str
    last_words: str

    @property
    def text(self) -> str:
        """What became of the process."""
        return f"hung for {self.hung:.0f} s" if self.hung else f"died with {self.how}"


_SERVER = get_context("forkserver")


def start_server(target: Target) -> None:
    """Start the process that all others are forked from, without waiting until it is ready."""
    # It imports slow modules once. These imports neither start threads nor open a device.
    modules = ["worker"] if target.arrays == "numpy" else ["worker", "torch_first"]
    _SERVER.set_forkserver_preload([f"tessera.tools.judge.{name}" for name in modules])
    forkserver.ensure_running()


class Process:
    """Runs `serve(connection, target, log)`, which first sends what it detected, or `Refused`.

    detected: that.
    seconds_to_start: the time to start the process.

    Raises:
        ValueError: the implementation cannot be judged at all.
    """

    def __init__(
        self, serve: Callable[[Connection, Target, str], None], target: Target, clock: Clock
    ) -> None:
        self._serve = serve
        self._target = target
        self._clock = clock
        self._folder = tempfile.TemporaryDirectory(prefix="tessera-verify-")
        self._log = Path(self._folder.name) / "stderr"
        self._process: Any = None
        self._connection: Any = None
        self.seconds_to_start = 0.0
        try:
            self.detected = self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process for good."""
        self.end()
        self._folder.cleanup()

    def ask(self, request: object, limit: float) -> Any:
        """The answer to the request, or the process's death; starts the process if it has ended.

        Raises:
            TimeUpError: the time of the command ended before the limit.
        """
        if self._process is None:
            self._start()
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(request)
        return self._reply(limit)

    def _start(self) -> Any:
        started = time.monotonic()
        ours, theirs = _SERVER.Pipe()
        arguments = (theirs, self._target, str(self._log))
        self._process = _SERVER.Process(target=self._serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._connection = ours
        reply = self._reply(_START_SECONDS)
        if isinstance(reply, Refused):
            self.end()
            raise ValueError(reply.message)
        if isinstance(reply, Death):
            raise ValueError(
                f"--impl: {self._target.implementation} cannot be imported: its process "
                f"{reply.text}: {reply.last_words}"
            )
        self.seconds_to_start = time.monotonic() - started
        return reply

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
            self.end()
            if wait < limit:
                raise TimeUpError
            return Death(limit, "", last_line(self._log))
        self._process.join()
        code = self._process.exitcode
        self.end()
        return death_of(code, last_line(self._log))

    def end(self) -> None:
        """End the process; the next request starts another one."""
        if self._process is not None:
            # Includes all processes that it has started, if it already leads a group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def last_line(log: Path) -> str:
    """The last non-blank line of a file."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    written = [line.strip() for line in lines if line.strip()]
    return written[-1][:_LOG_LINE_LENGTH] if written else ""


def death_of(code: int, words: str) -> Death:
    """How a process with this exit code died."""
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Death(None, how, words)
