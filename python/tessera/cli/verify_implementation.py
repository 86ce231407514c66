"""What `tessera verify` does with --impl: judges an implementation that is not Tessera's."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from tessera.cli.devices import device_index
from tessera.cli.progress_bars import counting_bar
from tessera.contract import Case
from tessera.judge.call import call_of_case
from tessera.judge.faults import judged_rules
from tessera.judge.forms import FORMS, listed_forms
from tessera.judge.report import Asked, document, text
from tessera.judge.runner import Runner
from tessera.judge.search import Key, Search
from tessera.judge.worker import Plan

_DEFAULT_SECONDS = 60.0
_OPTIONS = ("form", "arrays", "seconds", "accepted")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --impl and the arguments that go with it."""
    group = parser.add_argument_group(
        "an implementation of your own",
        "Which rules of the contract it breaks, each with the simplest call that shows it.",
    )
    add = group.add_argument
    add("--impl", metavar="MODULE:FUNCTION", help="judge this one, in processes of its own")
    add("--form", metavar="FORM", help=f"its signature (default: told from it): {listed_forms()}")
    add("--arrays", choices=("numpy", "torch"), help="what it is given (default: by form)")
    add(
        "--seconds",
        type=float,
        metavar="S",
        help=f"time to take, about (default: {_DEFAULT_SECONDS:.0f})",
    )
    add("--except", dest="accepted", metavar="RULE,..", help="rules that it may break")


def refuse_stray_options(args: argparse.Namespace) -> None:
    """Options of --impl that are given without it.

    Raises:
        ValueError: there is one.
    """
    for name in _OPTIONS:
        if getattr(args, name) is not None:
            shown = {"accepted": "except"}.get(name, name)
            raise ValueError(f"--{shown}: expected --impl beside it")


def run(args: argparse.Namespace, chosen: list[Case]) -> int:
    """Judge the implementation on the chosen cases."""
    try:
        from tessera.judge.shrinking import shrink
    except ImportError:
        raise ValueError(
            "--impl: hypothesis is not installed: pip install 'tessera[verify]'"
        ) from None
    if args.implementation is not None:
        raise ValueError("--implementation: names one of Tessera's; expected it without --impl")
    seconds = _DEFAULT_SECONDS if args.seconds is None else args.seconds
    if not seconds > 0:
        raise ValueError(f"--seconds: expected more than 0, got {seconds:g}")
    if args.form is not None and args.form not in FORMS:
        raise ValueError(f"--form: expected one of {listed_forms()}, got {args.form!r}")
    accepted = _accepted(args.accepted)
    if args.device != "auto":
        device_index(args.device)
    plan = Plan(args.impl, str(Path.cwd()), args.form, args.arrays, args.device)
    with Runner(plan) as runner, counting_bar() as progress:
        deadline = time.monotonic() + seconds
        search = Search(runner, accepted, deadline)
        task = progress.add_task("asking", total=len(chosen))
        search.ask_all(
            (call_of_case(case, args.seed) for case in chosen),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
        shrunk: set[Key] = set()
        # What comes up on the way is made small too.
        while left := [key for key in search.verdict.findings if key not in shrunk]:
            name = " ".join(filter(None, left[0]))
            progress.update(task, description=f"shrinking {name}", total=None)
            shrink(search, left[0], args.seed, (deadline - time.monotonic()) / len(left))
            shrunk.add(left[0])
        asked = Asked(args.cases, args.seed, seconds, accepted)
        found = document(search.verdict, plan, runner.told, asked)
    print(json.dumps(found, indent=2) if args.json else text(found))
    return 1 if found["findings"] else 0


def _accepted(names: str | None) -> list[str]:
    """The rules that may be broken."""
    accepted = names.split(",") if names else []
    known = [rule.name for rule in judged_rules()]
    for name in accepted:
        if name not in known:
            raise ValueError(
                f"--except: expected some of {', '.join(known)}, comma-separated, got {name!r}"
            )
    return accepted
