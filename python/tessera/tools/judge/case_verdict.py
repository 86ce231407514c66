"""Judges an implementation of any op, by the cases of the op's table."""

from __future__ import annotations

import functools
import math
import textwrap
import time
from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

import tessera
from tessera._library import load
from tessera._op import Op
from tessera.contract import Rule
from tessera.tools.judge.case_calls import COUNTS, Found, Judged, not_asked, passed, serve
from tessera.tools.judge.clock import Clock, Progress, TimeUpError
from tessera.tools.judge.faults import CALLING_RULES, Fault, fault_of_death
from tessera.tools.judge.process import Death, Process
from tessera.tools.judge.report import Asked
from tessera.tools.judge.runner import Pace
from tessera.tools.judge.worker import Target
from tessera.verification import CaseArray, case_values

# Share of the time in which cases are read: those that are left are not made.
_READING = 0.2
# Equal calls follow each other, so that an output that the next call reuses is not noticed.
_NOT_JUDGED = "outputs_kept"
_WIDTH = 100


def judged_rules(op: Op) -> list[Rule]:
    """The rules of calling, then the rules of the op's contract."""
    meaning = f"A call returns {COUNTS[op.num_outputs]}, of the framework of its inputs."
    form = Rule("output_form", meaning)
    calling = [form if rule.name == form.name else rule for rule in CALLING_RULES]
    contract = [Rule(**fields) for fields in load().read_json("op_rules", op.name)]
    left_out = {_NOT_JUDGED, *not_asked(op)}
    return [rule for rule in (*calling, *contract) if rule.name not in left_out]


class _Case(NamedTuple):
    num_elements: int
    name: str
    arguments: dict[str, Any]  # those that the call passes
    numbers: dict[str, Any]  # all numbers, also those with their defaults

    def lacks(self, found: Found) -> str:
        """What the implementation or its arrays do not have of the call."""
        for name, values in found.only.items():
            if self.numbers[name] not in values:
                return f"{name} {self.numbers[name]}"
        for name, value in self.arguments.items():
            if found.arrays == "numpy" and isinstance(value, CaseArray) and value.is_bits:
                return value.dtype
            if found.parameters is not None and name not in found.parameters:
                return name
        return ""

    def shown(self) -> dict[str, Any]:
        """The arguments for people and for JSON."""

        def text(value: Any) -> Any:
            if isinstance(value, tuple) and not isinstance(value, CaseArray):
                return ", ".join(map(text, value))
            return f"{value.dtype}{list(value.shape)}" if isinstance(value, CaseArray) else value

        return {name: text(value) for name, value in self.arguments.items()}


def judge(
    op: Op, target: Target, names: list[str], asked: Asked, clock: Clock, progress: Progress
) -> dict[str, Any]:
    """Make the calls, those with fewest elements first; returns the result as for JSON.

    Raises:
        ValueError: the implementation cannot be judged at all.
    """
    findings: dict[tuple[str, str], tuple[Fault, _Case]] = {}
    broken_by: dict[tuple[str, str], list[str]] = {}
    not_asked: Counter[str] = Counter()
    num_calls, pace = 0, Pace()
    with Process(functools.partial(serve, op.name), target, clock) as process:
        found: Found = process.detected
        cases: list[_Case] = []
        for name in names:
            progress("reading cases", len(cases), len(names))
            if time.monotonic() > clock.at(_READING):
                break
            cases.append(_case(op, name, asked.seed))
        cases.sort()
        try:
            for done, case in enumerate(cases):
                progress("calling", done, len(cases))
                if lacking := case.lacks(found):
                    not_asked[lacking] += 1
                    continue
                limit = pace.limit(case.num_elements, found.device)
                faults = _faults(process.ask((case.name, asked.seed), limit), process, pace, case)
                num_calls += 1
                for fault in faults:
                    if fault.rule not in asked.accepted:
                        broken_by.setdefault(fault.key, []).append(case.name)
                        findings.setdefault(fault.key, (fault, case))
        except TimeUpError:
            pass  # the number of calls says so
    meanings = {rule.name: rule.meaning for rule in judged_rules(op)}
    order = list(meanings)
    again = f"--op {op.name} --impl {target.implementation} --arrays {found.arrays}"
    if found.device != "cpu":
        again += f" --device {found.device}"
    return {
        "implementation": target.implementation,
        "op": op.name,
        "arrays": found.arrays,
        "device": found.device,
        "tessera": tessera.__version__,
        **{name: getattr(asked, name) for name in ("cases", "seed", "seconds")},
        "except": asked.accepted,
        "num_cases": len(names) - not_asked.total(),
        "num_calls": num_calls,
        "not_asked": dict(not_asked),
        "findings": [
            {
                "rule": fault.rule,
                "kind": fault.kind,
                "meaning": meanings[fault.rule],
                "message": fault.message,
                "num_calls": len(broken_by[fault.key]),
                "cases": broken_by[fault.key],
                "case": case.name,
                "call": case.shown(),
                "snippet": f"tessera verify {again} --cases {case.name} --seed {asked.seed}",
            }
            for fault, case in sorted(
                findings.values(), key=lambda one: (order.index(one[0].rule), one[0].kind)
            )
        ],
    }


def _case(op: Op, name: str, seed: int) -> _Case:
    values = case_values(op, name, seed)
    arrays = (value for value in values if isinstance(value, CaseArray))
    numbers = {
        row.name: value for row, value in zip(op.arguments, values, strict=True) if not row.is_array
    }
    size = sum(math.prod(array.shape) for array in arrays)
    return _Case(size, name, passed(op, values), numbers)


def _faults(reply: Judged | Death, process: Process, pace: Pace, case: _Case) -> Collection[Fault]:
    if isinstance(reply, Death):
        return [fault_of_death(reply)]
    if reply.lost:
        process.end()
        return [fault_of_death(Death(None, "device lost", reply.lost))]
    pace.note(case.num_elements, reply.seconds)
    return reply.faults


def exit_code(found: dict[str, Any]) -> int:
    """1 if a rule is broken; 3 if none is, but not every call was made; else 0."""
    if found["findings"]:
        return 1
    return 3 if found["num_calls"] < found["num_cases"] else 0


def text(found: dict[str, Any]) -> str:
    """The result as text for people."""
    lines = []
    for each in found["findings"]:
        kind = f" ({each['kind']})" if each["kind"] else ""
        call = ", ".join(f"{name} {value}" for name, value in each["call"].items())
        scope = f"on {each['num_calls']} of {found['num_calls']} cases"
        lines += [
            f"BROKEN {each['rule']}{kind}: {each['meaning']}",
            f"  {scope}; the one with fewest elements:",
            f"    {each['snippet']}",
            f"  its call: {call}",
            f"  {each['message']}",
        ]
        if named := [name for name in each["cases"] if not name.startswith("random:")]:
            lines += textwrap.wrap(
                f"cases of the table: {', '.join(named)}",
                _WIDTH,
                initial_indent="  ",
                subsequent_indent="    ",
                break_on_hyphens=False,
                break_long_words=False,
            )
        lines.append("")
    # A call breaks at most one of these: functions of NumPy may return arrays of their own for some
    # tensors, and raise for the others.
    without_array = sum(
        one["num_calls"]
        for one in found["findings"]
        if one["rule"] in ("no_exception", "output_form")
    )
    if without_array and without_array == found["num_calls"]:
        other = {"numpy": "torch", "torch": "numpy"}[found["arrays"]]
        expected = COUNTS[Op(found["op"]).num_outputs]
        lines.append(
            f"no call returned {expected}: it was given {found['arrays']} arrays; --arrays {other} "
            "gives others"
        )
    if found["not_asked"]:
        lacking = ", ".join(f"{name} ({n} cases)" for name, n in found["not_asked"].items())
        lines.append(f"not asked, since the function or its arrays have no such thing: {lacking}")
    if found["except"]:
        lines.append(f"not judged: {', '.join(found['except'])}")
    left = found["num_calls"] < found["num_cases"]
    if left:
        lines.append(
            f"the time was up after {found['num_calls']} of {found['num_cases']} cases: more "
            "--seconds complete them"
        )
    number = len({each["rule"] for each in found["findings"]})
    verdict = "nothing broken so far, by part of the cases" if left else "nothing broken"
    if number:
        verdict = f"{number} rules broken" if number != 1 else "1 rule broken"
    lines.append(
        f"judged {found['implementation']} as {found['op']}, {found['arrays']} arrays on "
        f"{found['device']}, by {found['num_calls']} cases; seed {found['seed']}: {verdict}"
    )
    return "\n".join(lines)
