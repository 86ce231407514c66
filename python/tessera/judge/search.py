"""Asks an implementation many calls, and keeps the simplest call that breaks each rule."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from tessera.judge.call import Call
from tessera.judge.faults import Fault, faults_of, judged_rules
from tessera.judge.forms import adapted
from tessera.judge.runner import Death, Runner

# Of the time given, what the calls may take before the rest goes to making the findings small.
_SHARE_OF_CALLS = 0.5

Key = tuple[str, str]


@dataclass
class Finding:
    """A rule that is broken, with the simplest call known to break it.

    valid: whether `call` has nothing but valid ids and map entries.
    num_calls, num_valid_calls: how many of the calls that were asked broke it.
    alone: whether `call` breaks it as the only call of a process.
    """

    call: Call
    fault: Fault
    valid: bool
    alone: bool
    num_calls: int = 0
    num_valid_calls: int = 0


@dataclass
class Verdict:
    """What a search has found out.

    num_cases: how many calls there were to ask; `num_calls` of them were.
    not_asked: how often each option was left out of a call, since the form does not have it.
    """

    num_cases: int
    num_calls: int = 0
    num_valid_calls: int = 0
    not_asked: Counter[str] = field(default_factory=Counter)
    findings: dict[Key, Finding] = field(default_factory=dict)

    def in_order(self) -> list[Finding]:
        """The findings, in the order of the rules."""
        order = [rule.name for rule in judged_rules()]
        return sorted(
            self.findings.values(), key=lambda one: (order.index(one.fault.rule), one.fault.kind)
        )


class Search:
    """Asks, and remembers. `accepted`: rules that are not judged."""

    def __init__(self, runner: Runner, accepted: Collection[str], deadline: float) -> None:
        self.runner = runner
        self.deadline = deadline
        self.verdict = Verdict(0)
        self._accepted = accepted
        self._known: dict[tuple[object, ...], list[Key]] = {}

    def ask_all(self, calls: Iterable[Call], on_call: Callable[[int, int], None]) -> None:
        """Ask the calls, those with valid ids first, small ones first, while there is time."""
        asked = []
        for call in calls:
            call, lacking = adapted(self.runner.told.judged, call)
            self.verdict.not_asked.update(lacking)
            asked.append(call)
        asked.sort(key=lambda call: (not call.has_valid_inputs, call.topk_ids.size))
        verdict = self.verdict
        verdict.num_cases = len(asked)
        until = time.monotonic() + _SHARE_OF_CALLS * (self.deadline - time.monotonic())
        were_valid = True
        for number, call in enumerate(asked):
            if time.monotonic() > until:
                break
            valid = call.has_valid_inputs
            # What calls with broken ids leave behind must not be told of those with valid ones.
            if were_valid and not valid:
                self.runner.restart()
            were_valid = valid
            keys = self.broken_by(call)
            verdict.num_calls += 1
            verdict.num_valid_calls += valid
            for key in keys:
                verdict.findings[key].num_calls += 1
                verdict.findings[key].num_valid_calls += valid
            on_call(number + 1, len(asked))

    def broken_by(self, call: Call) -> list[Key]:
        """Ask one call; which rules it breaks, by name and kind. The same call is asked once."""
        known = self._known.get(call.identity)
        if known is None:
            known = self._known[call.identity] = self._ask(call)
        return known

    def _ask(self, call: Call) -> list[Key]:
        was_fresh = self.runner.fresh
        outcome = self.runner.run(call)
        outcomes = [(outcome, True)]
        if isinstance(outcome, Death) and not was_fresh:
            # Perhaps of what an earlier call has done.
            self.runner.restart()
            again = self.runner.run(call)
            outcomes = [(again, True)]
            if not isinstance(again, Death):
                outcomes.append((outcome, False))
        keys = []
        for outcome, alone in outcomes:
            for fault in faults_of(call, outcome):
                if fault.rule not in self._accepted:
                    key = (fault.rule, fault.kind)
                    keys.append(key)
                    self._keep(key, Finding(call, fault, call.has_valid_inputs, alone))
        return keys

    def _keep(self, key: Key, new: Finding) -> None:
        old = self.verdict.findings.get(key)
        if old is None:
            self.verdict.findings[key] = new
        elif _rank(new) < _rank(old):
            old.call, old.fault, old.valid, old.alone = new.call, new.fault, new.valid, new.alone


def _rank(finding: Finding) -> tuple[object, ...]:
    """Calls that break a rule alone and with valid ids say more than smaller ones that do not."""
    return (not finding.alone, not finding.valid, finding.call.weight)
