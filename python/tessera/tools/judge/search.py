"""Makes many calls of an implementation, and keeps the simplest call that breaks each rule."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from tessera.tools.judge.call import Call
from tessera.tools.judge.classes import CLASSES, class_of, in_order
from tessera.tools.judge.clock import Clock
from tessera.tools.judge.faults import Fault, faults_of, judged_rules
from tessera.tools.judge.forms import adapted
from tessera.tools.judge.process import Death
from tessera.tools.judge.runner import Runner
from tessera.tools.judge.worker import Outcome, Target

Key = tuple[str, str]
# The rules that an implementation breaks if it cannot use the arrays that it gets.
UNFIT_ARRAYS = ("no_exception", "output_form")


@dataclass
class Finding:
    """A rule that is broken, with the simplest calls known to break it.

    program: the calls; the last one breaks the rule.
    history: the earlier calls of the process, the latest last.
    num_calls, num_valid_calls: how many of the calls made, and of the valid ones, broke the rule.
    reproduced: whether `program` breaks it in a fresh process; None if that was not tried.
    snippet: the program as text, once there is one.
    shown: whether the snippet showed it in a new interpreter; None if that was not tried.
    """

    program: tuple[Call, ...]
    fault: Fault
    history: Sequence[Call] = ()
    num_calls: int = 0
    num_valid_calls: int = 0
    reproduced: bool | None = None
    snippet: str = ""
    shown: bool | None = None

    @property
    def call(self) -> Call:
        """The call that breaks the rule."""
        return self.program[-1]

    @property
    def valid(self) -> bool:
        """Whether its calls have only valid ids and map entries."""
        return all(call.has_valid_inputs for call in self.program)


@dataclass
class Verdict:
    """The result of a search.

    num_cases, num_calls: per class, the number of calls to make, and of calls made.
    num_valid_calls: how many of the calls made had only valid ids and map entries.
    num_valid_unfit: how many of these broke a rule of `UNFIT_ARRAYS`.
    not_asked: how often each option was left out of a call because the form does not have it.
    """

    num_cases: Counter[str] = field(default_factory=Counter)
    num_calls: Counter[str] = field(default_factory=Counter)
    num_valid_calls: int = 0
    num_valid_unfit: int = 0
    not_asked: Counter[str] = field(default_factory=Counter)
    findings: dict[Key, Finding] = field(default_factory=dict)

    def in_order(self) -> list[Finding]:
        """The findings, in the order of the rules."""
        order = [rule.name for rule in judged_rules()]
        return sorted(
            self.findings.values(), key=lambda one: (order.index(one.fault.rule), one.fault.kind)
        )

    def classes(self) -> list[str]:
        """The classes of the search's calls, in their order."""
        return [name for name in CLASSES if self.num_cases[name]]


class Search:
    """Makes calls and keeps the findings. `accepted`: rules that are not judged.

    Calls with valid ids have a process of their own, so that they are not blamed for effects of
    other calls. A third process is for trying calls in a fresh process.

    pending: calls to make.
    """

    def __init__(
        self, runner: Runner, target: Target, accepted: Collection[str], clock: Clock
    ) -> None:
        self.clock = clock
        self.detected = runner.detected
        self.verdict = Verdict()
        self.pending: list[Call] = []
        self._shrinking: Key | None = None
        self._target = target
        self._pace = runner.pace
        self._runners = {"valid": runner}
        self._accepted = accepted
        self._known: dict[tuple[object, ...], list[Key]] = {}

    def close(self) -> None:
        """End the processes that the search has started."""
        for name, runner in self._runners.items():
            if name != "valid":
                runner.close()

    def runner(self, name: str) -> Runner:
        """The process for "valid" calls, for "other" calls, or for a "fresh" start."""
        if name not in self._runners:
            self._runners[name] = Runner(self._target, self.clock, self._pace)
        return self._runners[name]

    def shrink_for(self, key: Key | None) -> None:
        """From now on, replace the program of this finding only; None: of every finding."""
        self._known.clear()
        self._shrinking = key

    def prepare(self, calls: Iterable[Call]) -> None:
        """Take the calls to make."""
        for call in calls:
            call, lacking = adapted(self.detected.judged, call)
            self.verdict.not_asked.update(lacking)
            self.verdict.num_cases[class_of(call)] += 1
            self.pending.append(call)
        self.pending = in_order(self.pending)

    def ask_pending(
        self, share: float, share_with_findings: float, on_call: Callable[[], None]
    ) -> None:
        """Make the calls until a share of the time is over, another share if there are findings."""
        verdict = self.verdict
        while self.pending:
            until = self.clock.at(share_with_findings if verdict.findings else share)
            if time.monotonic() > until:
                break
            call = self.pending[0]
            keys = self.broken_by(call)
            del self.pending[0]
            valid = call.has_valid_inputs
            verdict.num_calls[class_of(call)] += 1
            verdict.num_valid_calls += valid
            verdict.num_valid_unfit += valid and any(rule in UNFIT_ARRAYS for rule, _ in keys)
            for key in keys:
                verdict.findings[key].num_calls += 1
                verdict.findings[key].num_valid_calls += valid
            on_call()

    def broken_by(self, call: Call) -> list[Key]:
        """The rules that a call breaks when it is made twice in a row; remembered per call."""
        known = self._known.get(call.identity)
        if known is None:
            known = self._known[call.identity] = self._ask(call)
        return known

    def breaks_fresh(self, program: Sequence[Call], key: Key) -> Fault | None:
        """Make the calls in a fresh process; returns how the last one breaks the rule."""
        runner = self.runner("fresh")
        runner.restart()
        outcome: Outcome | Death | None = None
        before: Outcome | None = None
        for at, call in enumerate(program):
            same = at > 0 and program[at - 1].identity == call.identity
            before = outcome if isinstance(outcome, Outcome) and same else None
            outcome = runner.run(call)
            if at + 1 < len(program) and (isinstance(outcome, Death) or not outcome.outputs):
                return None
        assert outcome is not None
        faults = faults_of(program[-1], outcome, before)
        return next((fault for fault in faults if fault.key == key), None)

    def _ask(self, call: Call) -> list[Key]:
        runner = self.runner("valid" if call.has_valid_inputs else "other")
        history, was_fresh = tuple(runner.history), runner.fresh
        first = runner.run(call)
        found: list[tuple[Fault, tuple[Call, ...]]]
        found = [(fault, (call,)) for fault in faults_of(call, first, None)]
        if isinstance(first, Outcome) and first.outputs:
            second = runner.run(call)
            found += [(fault, (call, call)) for fault in faults_of(call, second, first)]
        elif isinstance(first, Death) and not was_fresh:
            # An earlier call may have caused the death.
            again = runner.run(call)
            if isinstance(again, Death):
                found = []
            found += [(fault, (call,)) for fault in faults_of(call, again, None)]
        keys: list[Key] = []
        for fault, program in found:
            if fault.rule not in self._accepted and fault.key not in keys:
                keys.append(fault.key)
                self._keep(Finding(program, fault, history))
        return keys

    def _keep(self, new: Finding) -> None:
        key = new.fault.key
        old = self.verdict.findings.get(key)
        if old is None:
            self.verdict.findings[key] = new
        elif self._shrinking in (None, key) and _rank(new) < _rank(old):
            old.program, old.fault, old.history = new.program, new.fault, new.history


def _rank(finding: Finding) -> tuple[object, ...]:
    """Calls with valid ids that break a rule come before simpler ones with invalid ids."""
    return (not finding.valid, finding.call.weight, len(finding.program), len(finding.history))
