"""tessera verify: check every implementation, or one of your own, against the contract."""

from __future__ import annotations

import argparse
import json
from typing import Any

import tessera
from tessera._device import HOST
from tessera.cli import verify_implementation
from tessera.cli.devices import add_device_argument, chosen_device
from tessera.cli.integers import integer, seed
from tessera.cli.progress_bars import counting_bar, load_library
from tessera.contract import Case, case_named, cases
from tessera.verification import problems

_MAX_IDS = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add(
        "--cases",
        default="all",
        metavar="NAME",
        help="one case of the table, or random:SEED:MAX_IDS, or all (default: %(default)s)",
    )
    add(
        "--random",
        type=integer(0),
        metavar="N",
        help="number of random cases (default: 100 with all cases, none with a named one)",
    )
    add(
        "--max-ids",
        type=integer(1),
        metavar="N",
        help=f"maximum number of ids in a random case (default: {_MAX_IDS})",
    )
    add(
        "--seed",
        type=seed,
        default=0,
        help="seed of inputs and random cases (default: %(default)s)",
    )
    add("--implementation", metavar="NAME", help="verify only this one (default: all that can run)")
    add_device_argument(parser, "verify this device's implementations; with auto also the CPU's")
    add("--json", action="store_true", help="print one JSON document")
    verify_implementation.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.impl is not None:
        return verify_implementation.run(args, _chosen)
    verify_implementation.refuse_stray_options(args)
    chosen = _chosen(args)
    cuda_index = chosen_device(args.device)
    present, skipped = _implementations(args.implementation, args.device, cuda_index)

    failures = []
    left = dict.fromkeys(present, 0)
    with counting_bar() as progress:
        task = progress.add_task("verifying", total=len(chosen) * len(present))
        for case in chosen:
            for implementation in present:
                try:
                    found = problems(case, args.seed, implementation, max(cuda_index, 0))
                except NotImplementedError:  # a shape that it does not support
                    left[implementation] += 1
                    found = []
                if found:
                    failures.append(_failure(case, args, implementation, found))
                progress.advance(task)

    if args.json:
        document = {
            "cases": len(chosen),
            "seed": args.seed,
            "implementations": present,
            "skipped": skipped,
            "left_to_others": {name: count for name, count in left.items() if count},
            "failures": failures,
        }
        print(json.dumps(document, indent=2))
        return 1 if failures else 0
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    for failure in failures:
        print(f"FAILED {failure['implementation']} on {failure['case']}")
        for message in failure["problems"]:
            print(f"  {message}")
        print(f"  replay: {failure['replay']}")
    for name, count in left.items():
        if count:
            print(f"{name}: {count} cases left to other implementations, of shapes it cannot run")
    passed = len(chosen) * len(present) - sum(left.values()) - len(failures)
    print(
        f"verified {', '.join(present)} on {len(chosen)} cases, seed {args.seed}: "
        f"{passed} passed, {len(failures)} failed"
    )
    return 1 if failures else 0


def _chosen(args: argparse.Namespace) -> list[Case]:
    """The cases that the arguments select."""
    num_random = args.random
    if num_random is None:
        num_random = 100 if args.cases == "all" else 0
    if args.max_ids is not None and num_random == 0:
        raise ValueError("--max-ids: applies to random cases; expected --random beside it")
    max_ids = _MAX_IDS if args.max_ids is None else args.max_ids
    load_library()
    chosen = cases() if args.cases == "all" else [case_named(args.cases)]
    chosen += [
        case_named(f"random:{seed}:{max_ids}") for seed in range(args.seed, args.seed + num_random)
    ]
    return chosen


def _implementations(
    wanted: str | None, device: str, cuda_index: int
) -> tuple[list[str], dict[str, str]]:
    """Names of the implementations to verify, and why others cannot run."""
    known: dict[str, str] = {}
    if device == "auto" or cuda_index == HOST:
        # On the CPU, the implementations that can run do not depend on the shape.
        known = {one.name: one.refusal for one in tessera.explain(1, 1, 1)}
    if cuda_index != HOST:
        # On a GPU they do: each case shows which can run.
        known |= {one.name: "" for one in tessera.explain(1, 1, 1, device=cuda_index)}
    if wanted is None:
        present = [name for name, refusal in known.items() if not refusal]
        return present, {name: refusal for name, refusal in known.items() if refusal}
    if wanted not in known:
        raise ValueError(f"--implementation: expected one of {', '.join(known)}, got {wanted}")
    return [wanted], {}


def _failure(
    case: Case, args: argparse.Namespace, implementation: str, found: list[str]
) -> dict[str, Any]:
    device = "" if args.device == "auto" else f" --device {args.device}"
    return {
        "case": case.name,
        "implementation": implementation,
        "problems": found,
        "replay": f"tessera verify --cases {case.name} --seed {args.seed} "
        f"--implementation {implementation}{device}",
    }
