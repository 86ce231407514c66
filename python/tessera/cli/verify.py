"""tessera verify: check every implementation, or one of your own, against the contract."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, NamedTuple

from tessera._device import HOST
from tessera._op import Op, op_names
from tessera._outputs import ALIGN
from tessera.cli import verify_implementation
from tessera.cli.devices import add_device_argument, chosen_device
from tessera.cli.integers import integer, seed
from tessera.cli.progress_bars import counting_bar, load_library
from tessera.verification import case_names, implementations, problems, require_case

_MAX_SIZE = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add(
        "--op",
        metavar="NAME",
        help="verify only this op (default: all; with one case, the first op that has it; "
        f"with --impl, {ALIGN.name}; there also moe_sum, moe_unpermute and fused_experts)",
    )
    add(
        "--cases",
        default="all",
        metavar="NAME",
        help="one case of the op's table, or random:SEED:SIZE, or all (default: %(default)s)",
    )
    add(
        "--random",
        type=integer(0),
        metavar="N",
        help="number of random cases per op (default: 100 with all cases, none with a named one)",
    )
    add(
        "--max-ids",
        type=integer(1),
        metavar="N",
        help=f"maximum number of ids, or of elements, in a random case (default: {_MAX_SIZE})",
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


class _Job(NamedTuple):
    """What is to be verified of one op, and what came of it."""

    op: Op
    cases: list[str]
    implementations: list[str]
    skipped: dict[str, str]  # why others cannot run
    left: dict[str, list[str]]  # why an implementation does not support cases, one reason for each
    failures: list[dict[str, Any]]

    @property
    def ran(self) -> list[str]:
        """The implementations that ran a case."""
        return [name for name, reasons in self.left.items() if len(reasons) < len(self.cases)]

    @property
    def num_passed(self) -> int:
        calls = len(self.cases) * len(self.implementations)
        return calls - sum(map(len, self.left.values())) - len(self.failures)

    @property
    def why_nothing_ran(self) -> str:
        """The library's messages about the last case."""
        return "; ".join(dict.fromkeys(reasons[-1] for reasons in self.left.values()))


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.impl is not None:
        return verify_implementation.run(args, _cases)
    verify_implementation.refuse_stray_options(args)
    load_library()
    ops = _ops(args)
    chosen = {op: _cases(args, op) for op in ops}
    cuda_index = chosen_device(args.device)
    jobs = _jobs(args, chosen, cuda_index)
    with counting_bar() as progress:
        task = progress.add_task("verifying", total=0)
        total = sum(len(job.cases) * len(job.implementations) for job in jobs)
        for job in jobs:
            progress.update(task, description=f"verifying {job.op.name}", total=total)
            for case in job.cases:
                for implementation in job.implementations:
                    _verify(job, case, implementation, args, max(cuda_index, 0))
                    progress.advance(task)
    if args.json:
        print(json.dumps(_document(jobs, args.seed), indent=2))
    else:
        for job in jobs:
            _print(job, args.seed, f"{job.op.name}: " if len(ops) > 1 else "")
    not_verified = [job for job in jobs if not job.ran]
    for job in not_verified:
        print(f"tessera verify: nothing was verified: {job.why_nothing_ran}", file=sys.stderr)
    if any(job.failures for job in jobs):
        return 1
    return 2 if not_verified else 0


def _ops(args: argparse.Namespace) -> list[Op]:
    """The ops that the arguments select."""
    known = [ALIGN if name == ALIGN.name else Op(name) for name in op_names()]
    if args.op is not None:
        found = [op for op in known if op.name == args.op]
        if not found:
            names = ", ".join(op.name for op in known)
            raise ValueError(f"--op: expected one of {names}, got {args.op}")
        return found
    if args.cases == "all":
        return known
    return [next((op for op in known if args.cases in case_names(op)), ALIGN)]


def _cases(args: argparse.Namespace, op: Op) -> list[str]:
    """Names of the op's cases that the arguments select."""
    num_random = args.random
    if num_random is None:
        num_random = 100 if args.cases == "all" else 0
    if args.max_ids is not None and num_random == 0:
        raise ValueError("--max-ids: applies to random cases; expected --random beside it")
    size = _MAX_SIZE if args.max_ids is None else args.max_ids
    load_library()
    if args.cases != "all":
        try:
            require_case(op, args.cases)
        except ValueError as error:
            if args.op is None:
                raise ValueError(f"{error} (--op NAME selects the cases of another op)") from None
            raise
    chosen = case_names(op) if args.cases == "all" else [args.cases]
    return chosen + [f"random:{n}:{size}" for n in range(args.seed, args.seed + num_random)]


def _jobs(args: argparse.Namespace, chosen: dict[Op, list[str]], cuda_index: int) -> list[_Job]:
    """One job per op, with the implementations that can run or the requested one."""
    jobs = []
    names: list[str] = []
    for op, cases in chosen.items():
        known: dict[str, str] = {}
        if args.device == "auto" or cuda_index == HOST:
            # On the CPU, the implementations that can run do not depend on the shape.
            known = implementations(op, HOST)
        if cuda_index != HOST:
            # On a GPU they do: each case shows which can run.
            known |= dict.fromkeys(implementations(op, cuda_index), "")
        names += [name for name in known if name not in names]
        if args.implementation is None:
            # If all are refused, as by TESSERA_IMPL, a call that names none tells why.
            present = [name for name, refusal in known.items() if not refusal] or [""]
            skipped = {name: refusal for name, refusal in known.items() if refusal}
        else:
            present, skipped = [name for name in known if name == args.implementation], {}
        if present:
            jobs.append(_Job(op, cases, present, skipped, {name: [] for name in present}, []))
    if args.implementation is not None and not jobs:
        expected = ", ".join(names)
        raise ValueError(f"--implementation: expected one of {expected}, got {args.implementation}")
    return jobs


def _verify(
    job: _Job, case: str, implementation: str, args: argparse.Namespace, cuda_index: int
) -> None:
    """Add what comes of one case to the job."""
    try:
        found = problems(job.op, case, args.seed, implementation, cuda_index)
    except NotImplementedError as error:  # a shape that it does not support
        job.left[implementation].append(str(error))
        return
    if not found:
        return
    op = "" if job.op is ALIGN else f" --op {job.op.name}"
    device = "" if args.device == "auto" else f" --device {args.device}"
    job.failures.append(
        {
            "op": job.op.name,
            "case": case,
            "implementation": implementation,
            "problems": found,
            "replay": f"tessera verify{op} --cases {case} --seed {args.seed} "
            f"--implementation {implementation}{device}",
        }
    )


def _document(jobs: list[_Job], used_seed: int) -> dict[str, Any]:
    left: dict[str, int] = {}
    for job in jobs:
        for name, reasons in job.left.items():
            if reasons and name:
                left[name] = left.get(name, 0) + len(reasons)
    return {
        "cases": sum(len(job.cases) for job in jobs),
        "seed": used_seed,
        "implementations": list(dict.fromkeys(name for job in jobs for name in job.ran)),
        "skipped": {name: why for job in jobs for name, why in job.skipped.items()},
        "left_to_others": left,
        "failures": [failure for job in jobs for failure in job.failures],
        "ops": {
            job.op.name: {
                "cases": len(job.cases),
                "implementations": job.ran,
                "passed": job.num_passed,
                "failed": len(job.failures),
            }
            for job in jobs
        },
    }


def _print(job: _Job, used_seed: int, prefix: str) -> None:
    for name, reason in job.skipped.items():
        print(f"{prefix}skipped {name}: {reason}")
    for failure in job.failures:
        print(f"{prefix}FAILED {failure['implementation']} on {failure['case']}")
        for message in failure["problems"]:
            print(f"  {message}")
        print(f"  replay: {failure['replay']}")
    if not job.ran:
        return
    for name, reasons in job.left.items():
        if reasons:
            print(
                f"{prefix}{name}: {len(reasons)} cases left to other implementations, of shapes it "
                "cannot run"
            )
    print(
        f"{prefix}verified {', '.join(job.ran)} on {len(job.cases)} cases, "
        f"seed {used_seed}: {job.num_passed} passed, {len(job.failures)} failed"
    )
