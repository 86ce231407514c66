"""Tells what a search has found out: as a document for JSON, and as text."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import tessera
from tessera.judge.faults import judged_rules
from tessera.judge.search import Finding, Verdict
from tessera.judge.snippet import snippet
from tessera.judge.worker import Plan, Told

# Elements of an array that are shown, and how many of them around the first difference.
_SHOWN, _BEFORE = 16, 3


class Asked(NamedTuple):
    """How the search was made: what replays it."""

    cases: str
    seed: int
    seconds: float
    accepted: list[str]


def document(verdict: Verdict, plan: Plan, told: Told, asked: Asked) -> dict[str, Any]:
    """All of it, for JSON."""
    meanings = {rule.name: rule.meaning for rule in judged_rules()}
    return {
        "implementation": plan.implementation,
        "form": told.form,
        "arrays": told.arrays,
        "device": told.device,
        "tessera": tessera.__version__,
        "cases": asked.cases,
        "seed": asked.seed,
        "seconds": asked.seconds,
        "except": asked.accepted,
        "num_cases": verdict.num_cases,
        "num_calls": verdict.num_calls,
        "num_valid_calls": verdict.num_valid_calls,
        "not_asked": dict(verdict.not_asked),
        "findings": [
            _finding(finding, meanings[finding.fault.rule], plan, told)
            for finding in verdict.in_order()
        ],
    }


def _finding(finding: Finding, meaning: str, plan: Plan, told: Told) -> dict[str, Any]:
    call = finding.call
    return {
        "rule": finding.fault.rule,
        "kind": finding.fault.kind,
        "meaning": meaning,
        "message": finding.fault.message,
        "num_calls": finding.num_calls,
        "num_valid_calls": finding.num_valid_calls,
        "valid_ids": finding.valid,
        "alone": finding.alone,
        "call": {
            "num_tokens": call.topk_ids.shape[0],
            "top_k": call.topk_ids.shape[1],
            "num_experts": call.num_experts,
            "block_size": call.block_size,
            "dtype": str(call.topk_ids.dtype),
            "options": call.changed_options(),
        },
        "snippet": snippet(call, told, plan),
        "outputs": _differences(finding),
    }


def _differences(finding: Finding) -> dict[str, dict[str, str]]:
    """The outputs that are not as they should be: what was expected, what came."""
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
    """The document, for people."""
    lines = [_finding_text(each, found) for each in found["findings"]]
    if any(_is_of_every_valid_call(each, found) for each in found["findings"]):
        other = {"numpy": "torch", "torch": "numpy"}[found["arrays"]]
        lines.append(
            f"every call with valid ids raised: it was given {found['arrays']} arrays; "
            f"--arrays {other} gives others"
        )
    if found["not_asked"]:
        options = ", ".join(f"{name} ({n} calls)" for name, n in found["not_asked"].items())
        lines.append(f"not asked, since the form {found['form']} does not have it: {options}")
    if found["except"]:
        lines.append(f"not judged: {', '.join(found['except'])}")
    if found["num_calls"] < found["num_cases"]:
        lines.append(
            f"the time was up after {found['num_calls']} of {found['num_cases']} calls: "
            "more --seconds make the rest"
        )
    broken = {each["rule"] for each in found["findings"]}
    verdict = f"{len(broken)} rules broken" if len(broken) != 1 else "1 rule broken"
    lines.append(
        f"judged {found['implementation']} in the form {found['form']}, {found['arrays']} arrays "
        f"on {found['device']}, by {found['num_calls']} calls, {found['num_valid_calls']} of them "
        f"with valid ids; seed {found['seed']}: {verdict if broken else 'nothing broken'}"
    )
    return "\n".join(lines)


def _is_of_every_valid_call(each: dict[str, Any], found: dict[str, Any]) -> bool:
    every: int = found["num_valid_calls"]
    return every > 0 and bool(each["rule"] == "no_exception" and each["num_valid_calls"] == every)


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
        "  the simplest call found:",
        *(f"    {line}".rstrip() for line in each["snippet"].splitlines()),
        f"  {each['message']}",
    ]
    if not each["alone"]:
        lines.append(
            "  this call alone does no such thing: a call before it has written where it must not"
        )
    for name, arrays in each["outputs"].items():
        lines.append(f"  {name}")
        lines += [f"    {kind:8} {shown}" for kind, shown in arrays.items()]
    return "\n".join(lines) + "\n"
