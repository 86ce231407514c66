"""Finds the calls that break a rule in a fresh process, and makes them few and simple."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from tessera.tools.judge.call import DEFAULTS, OPTIONS, Call
from tessera.tools.judge.forms import adapted
from tessera.tools.judge.search import Finding, Search

Program = tuple[Call, ...]
# Faults that depend on chance or timing may not show at the first try.
_TRIES = 3
# Up to this many calls are easy to read one by one.
_FEW = 3


class Reproducer:
    """Tries whether programs break the rule of a finding, up to a time limit.

    best: the last program that did; all of its calls are adapted to the form.
    """

    def __init__(self, search: Search, finding: Finding, until: float) -> None:
        self._search = search
        self._finding = finding
        self._until = until
        self.best: Program | None = None
        self._failed: set[tuple[object, ...]] = set()

    @property
    def has_time(self) -> bool:
        """Whether there is time for another try."""
        return time.monotonic() < self._until

    def breaks(self, program: Program, tries: int = 1) -> bool:
        """Whether the program breaks the rule in one of these tries."""
        judged = self._search.detected.judged
        program = tuple(adapted(judged, call)[0] for call in program)
        if self._finding.valid and not all(call.has_valid_inputs for call in program):
            return False
        identity = tuple(call.identity for call in program)
        if tries == 1 and identity in self._failed:
            return False
        for _ in range(tries):
            if not self.has_time:
                return False
            if fault := self._search.breaks_fresh(program, self._finding.fault.key):
                self.best, self._finding.fault = program, fault
                return True
        self._failed.add(identity)
        return False


def reproduce(reproducer: Reproducer, finding: Finding, others: Iterable[Program] = ()) -> bool:
    """Find calls that break the rule in a fresh process: the finding's, or with more before it.

    others: programs that break other rules, and perhaps this one too.
    """
    return any(reproducer.breaks(program, tries) for program, tries in _programs(finding, others))


def _programs(finding: Finding, others: Iterable[Program]) -> Iterator[tuple[Program, int]]:
    """Programs, and the number of tries for each."""
    yield (finding.call,), 1
    yield (finding.call, finding.call), 1
    for program in others:
        yield program, 1
    yield finding.program, _TRIES
    number = 1
    while number < 2 * len(finding.history):
        yield (*finding.history[-number:], *finding.program), 1
        number *= 2


def simplify(reproducer: Reproducer) -> None:
    """Make the calls fewer, then simpler, as long as that helps and there is time."""
    before: Program | None = None
    while before is not reproducer.best and reproducer.has_time:
        before = reproducer.best
        _drop_calls(reproducer)
        # Many calls are easier to describe if they are all the same.
        if (number := len(reproducer.best or ())) > _FEW:
            reproducer.breaks((reproducer.best or ())[-1:] * number)
        _simplify_calls(reproducer)


def _drop_calls(reproducer: Reproducer) -> None:
    assert reproducer.best is not None
    chunk = len(reproducer.best) // 2
    while chunk >= 1:
        at = 0
        while at + chunk < len(reproducer.best):  # the last call stays
            if not reproducer.breaks(reproducer.best[:at] + reproducer.best[at + chunk :]):
                at += chunk
        chunk //= 2


def _simplify_calls(reproducer: Reproducer) -> None:
    for simpler in SIMPLER:
        assert reproducer.best is not None
        for chosen in (range(len(reproducer.best)), *([at] for at in range(len(reproducer.best)))):
            if not reproducer.has_time:
                return
            calls = list(reproducer.best)
            for at in chosen:
                calls[at] = simpler(calls[at]) or calls[at]
            if _weight(calls) < _weight(reproducer.best):
                reproducer.breaks(tuple(calls))


def _weight(program: Program | list[Call]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(call.weight for call in program), strict=True)))


def _with_fewer_ids(number: int) -> Callable[[Call], Call | None]:
    def first_ids(call: Call) -> Call | None:
        if call.topk_ids.size <= number:
            return None
        return replace(
            call,
            topk_ids=call.topk_ids.reshape(-1, 1)[:number].copy(),
            source=_made_from(call.source, f".reshape(-1, 1)[:{number}]"),
        )

    return first_ids


def _without_the_first_id(call: Call) -> Call:
    topk_ids = call.topk_ids.reshape(-1, 1)[1:].copy()
    return replace(call, topk_ids=topk_ids, source=_made_from(call.source, ".reshape(-1, 1)[1:]"))


def _with_few_experts(call: Call) -> Call:
    return _with_experts(call, int(call.topk_ids.max(initial=0)) + 1)


def _with_experts(call: Call, number: int) -> Call:
    number = max(1, min(call.num_experts, number))
    topk_ids, source = call.topk_ids, call.source
    if call.has_valid_inputs and topk_ids.max(initial=0) >= number:
        topk_ids = np.where(topk_ids < 0, topk_ids, topk_ids % number).astype(topk_ids.dtype)
        source = ""
    expert_map = None if call.expert_map is None else call.expert_map[:number].copy()
    map_source = _made_from(call.map_source, f"[:{number}]")
    return replace(
        call,
        topk_ids=topk_ids,
        num_experts=number,
        expert_map=expert_map,
        source=source,
        map_source=map_source,
    )


def _made_from(source: str, more: str) -> str:
    return f"{source}{more}" if source else ""


# Each makes one part of a call simpler; None if that part cannot be simplified.
SIMPLER: tuple[Callable[[Call], Call | None], ...] = (
    lambda call: replace(call, **{name: DEFAULTS[name] for name in OPTIONS}),
    *(_with_fewer_ids(number) for number in (0, 1, 4, 64)),
    lambda call: _with_fewer_ids(call.topk_ids.size // 2)(call),
    lambda call: _with_fewer_ids(call.topk_ids.size - 1)(call) if call.topk_ids.size else None,
    lambda call: _without_the_first_id(call) if call.topk_ids.size else None,
    lambda call: replace(call, topk_ids=np.zeros_like(call.topk_ids), source=""),
    lambda call: (
        replace(call, topk_ids=np.full_like(call.topk_ids, -1), source="")
        if call.topk_ids.dtype.kind == "i"
        else None
    ),
    lambda call: (
        replace(
            call,
            topk_ids=call.topk_ids.astype(np.int32),
            source=_made_from(call.source, ".astype(np.int32)"),
        )
        if call.has_valid_inputs
        else None
    ),
    _with_few_experts,
    lambda call: _with_experts(call, call.num_experts // 2),
    lambda call: _with_experts(call, call.num_experts - 1),
    lambda call: replace(call, block_size=max(1, call.block_size // 2)),
    lambda call: replace(call, block_size=min(2, call.block_size)),
    lambda call: replace(call, block_size=1),
)
