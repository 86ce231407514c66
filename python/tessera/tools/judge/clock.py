"""The time limit of a verdict, and its division among the steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

# With less time, two processes that load torch on busy cores may not reach the first call.
LEAST_SECONDS = 20.0
# Shares of the time by which a step has to be done. Calls are made until the first if there are
# findings, else until the second; the time after the last is for ending the process.
CALLS_WITH_FINDINGS, CALLS, FINDINGS, END = 0.4, 0.8, 0.85, 0.9

# Called with the step, and with how much of it is done, and of what.
Progress = Callable[[str, int | None, int | None], None]


class TimeUpError(BaseException):
    """The current step cannot be done in the remaining time.

    Not an Exception, which hypothesis would take for an outcome of the call.
    """


class Clock(NamedTuple):
    """The start of the command, and its limit in seconds."""

    started: float
    seconds: float

    def at(self, share: float) -> float:
        """The moment of `time.monotonic` at which this share of the time is over."""
        return self.started + share * self.seconds

    def left(self, limit: float) -> float:
        """Seconds to wait: `limit`, or less if the end is nearer.

        Raises:
            TimeUpError: no time is left.
        """
        left = self.at(END) - time.monotonic()
        if left <= 0:
            raise TimeUpError
        return min(limit, left)
