"""Judges an implementation: makes calls, simplifies those with faults, tries the snippets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable

from tessera.tools.judge.call import Call
from tessera.tools.judge.clock import (
    CALLS,
    CALLS_WITH_FINDINGS,
    FINDINGS,
    Clock,
    Progress,
    TimeUpError,
)
from tessera.tools.judge.programs import Reproducer, reproduce, simplify
from tessera.tools.judge.runner import Runner
from tessera.tools.judge.search import Finding, Search, Verdict
from tessera.tools.judge.shrinking import shrink
from tessera.tools.judge.snippet import snippet
from tessera.tools.judge.trial import Trial
from tessera.tools.judge.worker import Target

# Shares of the time for a finding by which it has been reproduced in a fresh process, shrunk in
# others, and simplified in fresh processes. The remaining time is for its snippet.
_REPRODUCING, _SHRINKING, _CHECKING = 0.3, 0.6, 0.8
# Share of the same time that the snippet of a call that hangs may take.
_HANGING = 0.6
# The tries of a snippet: whether free memory is dirty. Faults by chance need more than one.
_DIRTY = (False, True, False)


def judge(
    runner: Runner,
    target: Target,
    calls: Iterable[Call],
    accepted: Collection[str],
    seed: int,
    clock: Clock,
    progress: Progress,
) -> Verdict:
    """Find the rules that it breaks. Calls `progress` with the step, and the done and all calls."""
    search = Search(runner, target, accepted, clock)
    findings = search.verdict.findings
    with contextlib.closing(search), contextlib.suppress(TimeUpError):
        search.prepare(calls)
        total = len(search.pending)
        for share_with_findings in (CALLS_WITH_FINDINGS, CALLS):
            search.shrink_for(None)
            search.ask_pending(
                CALLS,
                share_with_findings,
                lambda: progress("calling", total - len(search.pending), total),
            )
            # Includes findings that arise while others are simplified.
            while left := [one for one in findings.values() if not one.snippet]:
                now = time.monotonic()
                until = now + max(0.0, clock.at(FINDINGS) - now) / len(left)
                _finish(search, left[0], target, seed, until, progress)
    for finding in findings.values():
        finding.snippet = finding.snippet or snippet(
            finding.program, finding.fault, search.detected, target
        )
    return search.verdict


def _finish(
    search: Search, finding: Finding, target: Target, seed: int, until: float, progress: Progress
) -> None:
    """Make the calls of a finding few and simple, and try its snippet."""
    started = time.monotonic()
    name = " ".join(filter(None, finding.fault.key))

    trial = Trial(search.runner("fresh"), target.folder, search.clock)
    seconds = until - started
    # A snippet that hangs takes long; the others run quickly.
    hangs = finding.fault.rule == "no_hang"
    reserved = min(trial.limit(finding.call), _HANGING * seconds) if hangs else 0.0

    def moment(share: float) -> float:
        return started + share * (seconds - reserved)

    progress(f"shrinking {name}", None, None)
    first = Reproducer(search, finding, moment(_REPRODUCING))
    others = [one.program for one in search.verdict.findings.values() if one.reproduced]
    if reproduce(first, finding, others):
        assert first.best is not None
        finding.reproduced, finding.program, finding.history = True, first.best, ()
        fault = finding.fault
        best = Reproducer(search, finding, moment(_CHECKING))
        if len(first.best) == finding.fault.num_calls:
            shrink(search, finding, seed, moment(_SHRINKING))
            finding.history = ()
        # A call shrunk in a process that had made other calls may not break it in a fresh one.
        if finding.program is first.best or not reproduce(best, finding):
            best.best, finding.fault = first.best, fault
            simplify(best)
        assert best.best is not None
        finding.program = best.best
    elif first.has_time:
        finding.reproduced = False
    progress(f"trying the snippet of {name}", None, None)
    texts = [
        snippet(finding.program, finding.fault, search.detected, target, dirty=dirty)
        for dirty in _DIRTY
    ]
    shown = (text for text in texts if trial.breaks(text, finding.program, finding.fault.key))
    text = next(shown, None)
    finding.shown = text is not None
    finding.snippet = text or texts[0]
