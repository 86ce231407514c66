"""The time that a verdict may take, and what it goes to."""

from __future__ import annotations

import time
from typing import NamedTuple

# Less is gone before the first call where torch has to be loaded by two processes on busy cores.
LEAST_SECONDS = 20.0
# Shares of the time by which something has to be done. Calls are made until the first of these, and
# to the second while nothing is broken; what remains is for the process's own end.
CALLS_WITH_FINDINGS, CALLS, FINDINGS, END = 0.4, 0.8, 0.85, 0.9


class TimeUpError(BaseException):
    """What was begun cannot be done in the time that is left.

    No Exception, which hypothesis would take for an outcome of the call.
    """


class Clock(NamedTuple):
    """When the command began, and the seconds that it was given."""

    started: float
    seconds: float

    def at(self, share: float) -> float:
        """The moment at which this share of the time is over, of `time.monotonic`."""
        return self.started + share * self.seconds

    def left(self, limit: float) -> float:
        """Seconds to wait: `limit`, or less where the end is nearer.

        Raises:
            TimeUpError: there are none.
        """
        left = self.at(END) - time.monotonic()
        if left <= 0:
            raise TimeUpError
        return min(limit, left)
