"""The result of a search, as a document for JSON and as text."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import tessera
from tessera.tools.judge.faults import judged_rules
from tessera.tools.judge.search import Finding, Verdict
from tessera.tools.judge.worker import Detected, Target

# Elements of an array that are shown, and how many of them precede the first difference.
_SHOWN, _BEFORE = 16, 3


class Asked(NamedTuple):
    """The parameters of the search, which replay it."""

    cases: str
    seed: int
    seconds: float
    accepted: list[str]


def document(verdict: Verdict, target: Target, detected: Detected, asked: Asked) -> dict[str, Any]:
    """The complete result, for JSON."""
    meanings = {rule.name: rule.meaning for rule in judged_rules()}
    return {
        "implementation": target.implementation,
        "form": detected.form,
        "arrays": detected.arrays,
        "device": detected.device,
        "tessera": tessera.__version__,
        "cases": asked.cases,
        "seed": asked.seed,
        "seconds": asked.seconds,
        "except": asked.accepted,
        "num_cases": verdict.num_cases.total(),
        "num_calls": verdict.num_calls.total(),
        "num_valid_calls": verdict.num_valid_calls,
        "num_valid_unfit": verdict.num_valid_unfit,
        "classes": [
            {
                "name": name,
                "num_cases": verdict.num_cases[name],
                "num_calls": verdict.num_calls[name],
            }
            for name in verdict.classes()
        ],
        "not_asked": dict(verdict.not_asked),
        "findings": [
            _finding(finding, meanings[finding.fault.rule]) for finding in verdict.in_order()
        ],
    }


def not_made(found: dict[str, Any]) -> list[str]:
    """The classes whose calls were not all made, with the numbers of calls."""
    return [
        f"{each['name']} ({each['num_calls']} of {each['num_cases']})"
        for each in found["classes"]
        if each["num_calls"] < each["num_cases"]
    ]


def exit_code(found: dict[str, Any]) -> int:
    """1 if a rule is broken; 3 if none is, but not every call was made; else 0."""
    if found["findings"]:
        return 1
    return 3 if not_made(found) else 0


def _finding(finding: Finding, meaning: str) -> dict[str, Any]:
    call = finding.call
    return {
        "rule": finding.fault.rule,
        "kind": finding.fault.kind,
        "meaning": meaning,
        "message": finding.fault.message,
        "num_calls": finding.num_calls,
        "num_valid_calls": finding.num_valid_calls,
        "valid_ids": finding.valid,
        "num_program_calls": len(finding.program),
        "alone": bool(finding.reproduced) and len(finding.program) == finding.fault.num_calls,
        "reproduced": finding.reproduced,
        "shown": finding.shown,
        "call": {
            "num_tokens": call.topk_ids.shape[0],
            "top_k": call.topk_ids.shape[1],
            "num_experts": call.num_experts,
            "block_size": call.block_size,
            "dtype": str(call.topk_ids.dtype),
            "options": call.changed_options(),
        },
        "snippet": finding.snippet,
        "outputs": _differences(finding),
    }


def _differences(finding: Finding) -> dict[str, dict[str, str]]:
    """The outputs that differ from the expected ones: what was expected, what came."""
    found = finding.fault.outputs
    if found is None:
        return {}
    expected = finding.call.expected()
    shown = {}
    for name, array in found.items():
        want = expected[name]
        if array.dtype == want.dtype and np.array_equal(array[: want.size], want):
            continue
        at = 0
        if array.size == want.size and array.size > _SHOWN:
            at = max(0, int(np.flatnonzero(array != want)[0]) - _BEFORE)
        shown[name] = {"expected": _shown(want, at), "found": _shown(array, at)}
    return shown


def _shown(array: npt.NDArray[Any], at: int) -> str:
    values = ", ".join(map(str, array.reshape(-1)[at : at + _SHOWN].tolist()))
    before, after = "... " if at else "", " ..." if at + _SHOWN < array.size else ""
    return f"{array.dtype}[{array.size}] {before}{values}{after}".rstrip()


def text(found: dict[str, Any]) -> str:
    """The document as text for people."""
    lines = [_finding_text(each, found) for each in found["findings"]]
    if 0 < found["num_valid_calls"] == found["num_valid_unfit"]:
        other = {"numpy": "torch", "torch": "numpy"}[found["arrays"]]
        lines.append(
            "every call with valid ids raised or did not return three arrays: "
            f"it was given {found['arrays']} arrays; --arrays {other} gives others"
        )
    if found["not_asked"]:
        options = ", ".join(f"{name} ({n} calls)" for name, n in found["not_asked"].items())
        lines.append(f"not asked, since the function has no such parameter: {options}")
    if found["except"]:
        lines.append(f"not judged: {', '.join(found['except'])}")
    if left := not_made(found):
        lines.append(
            f"the time was up after {found['num_calls']} of {found['num_cases']} calls: "
            f"more --seconds complete the {', '.join(left)}"
        )
    broken = {each["rule"] for each in found["findings"]}
    verdict = "nothing broken"
    if broken:
        verdict = f"{len(broken)} rules broken" if len(broken) != 1 else "1 rule broken"
    elif left:
        verdict = "nothing broken so far, by part of the calls"
    lines.append(
        f"judged {found['implementation']} in the form {found['form']}, {found['arrays']} arrays "
        f"on {found['device']}, by {found['num_calls']} calls, {found['num_valid_calls']} of them "
        f"with valid ids; seed {found['seed']}: {verdict}"
    )
    return "\n".join(lines)


def _finding_text(each: dict[str, Any], found: dict[str, Any]) -> str:
    scope = f"on {each['num_calls']} of {found['num_calls']} calls"
    if each["num_calls"] == 0:
        scope = f"on none of the {found['num_calls']} calls, but on one made while shrinking"
    elif each["valid_ids"]:
        scope += f", of those with valid ids on {each['num_valid_calls']}"
        scope += f" of {found['num_valid_calls']}"
    if not each["valid_ids"]:
        scope += "; not with valid ids"
    kind = f" ({each['kind']})" if each["kind"] else ""
    lines = [
        f"BROKEN {each['rule']}{kind}: {each['meaning']}",
        f"  {scope}",
        f"  {what_the_snippet_is(each)}:",
        *(f"    {line}".rstrip() for line in each["snippet"].splitlines()),
        f"  {each['message']}",
    ]
    for name, arrays in each["outputs"].items():
        lines.append(f"  {name}")
        lines += [f"    {kind:8} {shown}" for kind, shown in arrays.items()]
    return "\n".join(lines) + "\n"


def what_the_snippet_is(each: dict[str, Any]) -> str:
    """A description of a finding's snippet, and whether a run of it showed the fault."""
    number = each["num_program_calls"]
    calls = "the simplest call found"
    if number > 1:
        calls = f"the simplest {number} calls found, the last of which does it"
    if each["shown"]:
        return f"{calls}; tried in a new process, this shows it"
    if each["shown"] is None:
        return f"{calls}; not tried in a new process, since the time was up"
    if each["reproduced"]:
        return (
            f"{calls}; shown by these calls in a process forked for them, NOT by this program in a "
            "new one"
        )
    return f"{calls}; it was seen after other calls, and in a new process this does NOT show it"
