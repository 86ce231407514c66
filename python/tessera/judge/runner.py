"""Keeps the process that makes the calls, and starts it anew when one has killed or hung it."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from multiprocessing import connection, get_context
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tessera._library import torch_or_none
from tessera.judge.call import Call
from tessera.judge.forms import arguments_of
from tessera.judge.worker import Outcome, Plan, Refused, Told, serve

# Importing an engine and its kernels may take as long.
_START_SECONDS = 300.0
# A call hangs that takes so much longer than the slowest one before it, within these bounds. Where
# none has come to an end yet, kernels may have to be compiled and a device to be woken.
_TIMES_THE_SLOWEST = 20.0
_LEAST_SECONDS, _MOST_SECONDS = 2.0, 30.0
_FIRST_SECONDS = {"cpu": 10.0}
_FIRST_SECONDS_ON_A_DEVICE = 60.0
_LOG_LINE_LENGTH = 200


class Death(NamedTuple):
    """A call that the process did not survive.

    hung: seconds after which it was ended from outside; None if it died by itself.
    how: the signal or exit code; "device lost" where the device is of no more use to the process.
    last_words: the last line that the process wrote to stderr, or what the device said.
    """

    hung: float | None
    how: str
    last_words: str


class Runner:
    """Makes calls of an implementation, each in a process that is still alive.

    fresh: whether the next call will be the first one of its process.

    Raises:
        ValueError: the implementation cannot be judged at all.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._context = get_context("forkserver")
        # Imported once, in the process that all others are forked from; torch, which is slow, only
        # where it can be: a module that fails ends that process. Neither starts a thread or takes a
        # device by that.
        with_torch = [] if torch_or_none() is None else ["torch"]
        self._context.set_forkserver_preload(["tessera.judge.worker", *with_torch])
        self._folder = tempfile.TemporaryDirectory(prefix="tessera-verify-")
        self._log = Path(self._folder.name) / "stderr"
        self._process: Any = None
        self._connection: Any = None
        self._slowest = 0.0
        self.fresh = True
        try:
            self.told = self._start()
        except BaseException:
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
        self._end()
        self._folder.cleanup()

    def restart(self) -> None:
        """Let the next call be the first one of its process."""
        self._end()
        self._start()

    def run(self, call: Call) -> Outcome | Death:
        """Make the call."""
        if self._process is None:
            self._start()
        self.fresh = False
        limit = _FIRST_SECONDS.get(self.told.device, _FIRST_SECONDS_ON_A_DEVICE)
        if self._slowest:
            limit = min(max(self._slowest * _TIMES_THE_SLOWEST, _LEAST_SECONDS), _MOST_SECONDS)
        with contextlib.suppress(BrokenPipeError):
            self._connection.send((call, arguments_of(self.told.judged, call)))
        reply = self._reply(limit)
        if isinstance(reply, Outcome):
            self._slowest = max(self._slowest, reply.seconds)
            if not reply.lost:
                return reply
            self._end()
            return Death(None, "device lost", reply.lost)
        assert isinstance(reply, Death)
        return reply

    def _start(self) -> Told:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self._plan, str(self._log))
        self._process = self._context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._connection = ours
        reply = self._reply(_START_SECONDS)
        if isinstance(reply, Told):
            return reply
        if isinstance(reply, Refused):
            self._end()
            raise ValueError(reply.message)
        assert isinstance(reply, Death)
        died = f"hung for {reply.hung:.0f} s" if reply.hung else f"died with {reply.how}"
        raise ValueError(
            f"--impl: {self._plan.implementation} cannot be imported: its process {died}: "
            f"{reply.last_words}"
        )

    def _reply(self, limit: float) -> object:
        """What the process answers; its death, if it gives none in so many seconds."""
        ready = connection.wait([self._connection, self._process.sentinel], limit)
        if self._connection in ready:
            with contextlib.suppress(EOFError, ConnectionResetError):
                return self._connection.recv()
        if not ready:
            self._end()
            return Death(limit, "", self._last_words())
        self._process.join()
        code = self._process.exitcode
        self._end()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Death(None, how, self._last_words())

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None
            self.fresh = True

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        written = [line.strip() for line in lines if line.strip()]
        return written[-1][:_LOG_LINE_LENGTH] if written else ""
