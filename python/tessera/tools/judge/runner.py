"""Makes calls of an implementation, and remembers what its process has answered."""

from __future__ import annotations

from tessera.tools.judge.call import Call
from tessera.tools.judge.clock import Clock
from tessera.tools.judge.forms import arguments_of
from tessera.tools.judge.process import Death, Process
from tessera.tools.judge.worker import Detected, Outcome, Target, serve

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


class Pace:
    """The durations of calls, and the limit after which a call counts as hanging."""

    def __init__(self) -> None:
        self._slowest = self._slowest_word = 0.0

    def note(self, num_words: int, seconds: float) -> None:
        """Take into account a finished call that reads and writes so many words."""
        self._slowest = max(self._slowest, seconds)
        self._slowest_word = max(self._slowest_word, seconds / max(num_words, _FEWEST_WORDS))

    def limit(self, num_words: int, device: str) -> float:
        """Seconds that the call may take."""
        if not self._slowest:
            return _FIRST_SECONDS if device == "cpu" else _FIRST_SECONDS_ON_A_DEVICE
        of_words = self._slowest_word * max(num_words, _FEWEST_WORDS)
        limit = max(self._slowest, of_words) * _TIMES_AS_LONG
        return min(max(limit, _LEAST_SECONDS), _MOST_SECONDS)


class Runner(Process):
    """Makes calls of an implementation, each in a process that is still alive.

    detected: form, arguments, arrays and device, as the process found them.
    fresh: whether the next call will be the first one of its process.
    history: the latest calls that the process has answered with outputs.
    pace: durations of calls, shared with other runners.

    Raises:
        ValueError: the implementation cannot be judged at all.
    """

    detected: Detected

    def __init__(self, target: Target, clock: Clock, pace: Pace) -> None:
        self.pace = pace
        self.fresh = True
        self.history: list[Call] = []
        self._words = 0
        super().__init__(serve, target, clock)

    def restart(self) -> None:
        """Let the next call be the first one of its process."""
        if not self.fresh:
            self.end()

    def run(self, call: Call) -> Outcome | Death:
        """Make the call."""
        limit = self.pace.limit(call.num_words, self.detected.device)
        self.fresh = False
        reply = self.ask((call, arguments_of(self.detected.judged, call)), limit)
        if isinstance(reply, Outcome):
            self.pace.note(call.num_words, reply.seconds)
            if not reply.lost:
                if reply.outputs:
                    self._remember(call)
                return reply
            self.end()
            return Death(None, "device lost", reply.lost)
        assert isinstance(reply, Death)
        return reply

    def end(self) -> None:
        """End the process; the next call starts another one."""
        super().end()
        self.history, self._words = [], 0
        self.fresh = True

    def _remember(self, call: Call) -> None:
        self.history.append(call)
        self._words += call.topk_ids.size
        while self._words > _REMEMBERED_WORDS:
            self._words -= self.history.pop(0).topk_ids.size
