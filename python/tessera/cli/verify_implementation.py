"""`tessera verify --impl`: judges an implementation that is not Tessera's."""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tessera._op import Op, op_names
from tessera._outputs import ALIGN
from tessera.cli.devices import device_index
from tessera.cli.progress_bars import counting_bar
from tessera.contract import Rule, case_named
from tessera.tools.judge import case_verdict, report
from tessera.tools.judge.call import call_of_case
from tessera.tools.judge.clock import LEAST_SECONDS, Clock, Progress, TimeUpError
from tessera.tools.judge.faults import judged_rules
from tessera.tools.judge.forms import FORMS, listed_forms
from tessera.tools.judge.process import start_server
from tessera.tools.judge.runner import Pace, Runner
from tessera.tools.judge.worker import Target

_DEFAULT_SECONDS = 60.0
_OPTIONS = ("form", "arrays", "seconds", "accepted")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --impl and the arguments that go with it."""
    group = parser.add_argument_group(
        "an implementation of your own",
        "Find the rules of the contract that it breaks, each with a simple program that shows it.",
    )
    parser.epilog = (
        "Exit codes: 0, nothing is broken; 1, something is; 2, bad usage or input, or nothing of "
        "an op ran; 3, with --impl: nothing is broken so far, but the time was up before every "
        "call was made."
    )
    add = group.add_argument
    add("--impl", metavar="MODULE:FUNCTION", help="judge this one, in separate processes")
    add("--form", metavar="FORM", help=f"its signature (default: detected): {listed_forms()}")
    add("--arrays", choices=("numpy", "torch"), help="its arrays (default: by form)")
    add(
        "--seconds",
        type=float,
        metavar="S",
        help=f"time limit, {LEAST_SECONDS:.0f} or more (default: {_DEFAULT_SECONDS:.0f})",
    )
    add("--except", dest="accepted", metavar="RULE,..", help="rules that it may break")


def refuse_stray_options(args: argparse.Namespace) -> None:
    """Refuse options of --impl that are given without it.

    Raises:
        ValueError: there is such an option.
    """
    for name in _OPTIONS:
        if getattr(args, name) is not None:
            shown = {"accepted": "except"}.get(name, name)
            raise ValueError(f"--{shown}: expected --impl beside it")


def run(args: argparse.Namespace, chosen: Callable[[argparse.Namespace, Op], list[str]]) -> int:
    """Judge the implementation on the cases whose names `chosen` selects by the arguments."""
    started = time.monotonic()
    op = ALIGN if args.op in (None, ALIGN.name) else Op(args.op)
    if args.op is not None and args.op not in op_names():
        known = ", ".join(op_names())
        raise ValueError(f"--op: expected one of {known}, got {args.op}")
    if args.implementation is not None:
        raise ValueError("--implementation: names one of Tessera's; expected it without --impl")
    seconds = _DEFAULT_SECONDS if args.seconds is None else args.seconds
    if not LEAST_SECONDS <= seconds < math.inf:
        raise ValueError(f"--seconds: expected {LEAST_SECONDS:g} or more, got {seconds:g}")
    if args.form is not None and op is not ALIGN:
        raise ValueError(f"--form: applies to {ALIGN.name}, not to {op.name}")
    if args.form is not None and args.form not in FORMS:
        raise ValueError(f"--form: expected one of {listed_forms()}, got {args.form!r}")
    rules = judged_rules() if op is ALIGN else case_verdict.judged_rules(op)
    asked = report.Asked(args.cases, args.seed, seconds, _accepted(args.accepted, rules))
    if args.device != "auto":
        device_index(args.device)
    target = Target(args.impl, str(Path.cwd()), args.form, args.arrays, args.device)
    clock = Clock(started, seconds)
    start_server(target)
    judge = _align_block_size if op is ALIGN else functools.partial(case_verdict.judge, op)
    with counting_bar() as bar:
        task = bar.add_task(f"importing {args.impl}", total=None)

        def progress(what: str, done: int | None, total: int | None) -> None:
            bar.update(task, description=what, completed=done, total=total)

        try:
            found = judge(target, chosen(args, op), asked, clock, progress)
        except TimeUpError:
            raise ValueError(
                f"--seconds: expected more than {args.impl} takes to be imported, got {seconds:g}"
            ) from None
    if not found["num_cases"]:
        lacking = ", ".join(found["not_asked"])
        raise ValueError(
            f"--impl: expected a function and arrays that take a case of {op.name}, got "
            f"{args.impl} with arrays of {found['arrays']}: all cases need more: {lacking}"
        )
    shown_by: Any = report if op is ALIGN else case_verdict
    print(json.dumps(found, indent=2) if args.json else shown_by.text(found))
    return int(shown_by.exit_code(found))


def _align_block_size(
    target: Target, names: list[str], asked: report.Asked, clock: Clock, progress: Progress
) -> dict[str, Any]:
    """The verdict on an implementation of `align_block_size`, as a document."""
    try:
        from tessera.tools.judge.judging import judge
    except ImportError:
        raise ValueError(
            "--impl: hypothesis is not installed: pip install hypothesis, or pip install "
            "'.[verify]' in a checkout of Tessera"
        ) from None
    cases = [case_named(name) for name in names]
    with Runner(target, clock, Pace()) as runner:
        calls = (call_of_case(case, asked.seed) for case in cases)
        verdict = judge(runner, target, calls, asked.accepted, asked.seed, clock, progress)
    return report.document(verdict, target, runner.detected, asked)


def _accepted(names: str | None, rules: list[Rule]) -> list[str]:
    """The names of the rules that may be broken, all of them known."""
    accepted = names.split(",") if names else []
    known = [rule.name for rule in rules]
    for name in accepted:
        if name not in known:
            raise ValueError(
                f"--except: expected some of {', '.join(known)}, comma-separated, got {name!r}"
            )
    return accepted
