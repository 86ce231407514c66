"""Times every implementation of `fused_experts` on a GPU, beside the one that the policy picks.

The thresholds of src/cuda/fused_experts/policy.cpp are chosen by what this prints: for each of some
models' layers and numbers of tokens, with uniform ids, the fastest implementation, and how much
slower the policy's choice is. Then it times the choice alone on a fine grid up to 512 tokens, where
no call should take longer than one with more tokens. Before it is timed, each implementation is
compared with a float32 reference.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import statistics
import sys
import timeit
from collections.abc import Iterable
from typing import Any, NamedTuple

from gpu_program import options_of

import tessera
from tessera._op import Op
from tessera.tools.bench.contender import TimedCall
from tessera.tools.bench.machine import description
from tessera.tools.bench.methods import MEANINGS, QUICK, burst
from tessera.tools.bench.ops.fused_experts_cuda import (
    MODELS,
    LayerProblem,
    make_problem,
    model_shape,
    num_sets,
)
from tessera.tools.bench.ops.fused_experts_inputs import Shape
from tessera.tools.bench.report import figure
from tessera.tools.bench.results import write_results

TOKENS = tuple(2**i for i in range(15))
# All numbers up to 16 tokens, then eight between a power of 2 and the next.
GRID = (*range(1, 17), *(2**i + 2 ** (i - 3) * j for i in range(4, 9) for j in range(1, 9)))

# Choices that are slower than the fastest implementation by no more than this are as good.
TOLERANCE = 0.03

_OP = Op("fused_experts")


class Pair(NamedTuple):
    """Two sizes of a grid, and by which share of one's time the other takes longer."""

    num_tokens: int
    more_tokens: int
    slower: float  # may be negative


class Choice(NamedTuple):
    """The policy's choice on a shape and the fastest implementation, with their microseconds."""

    name: str
    us: float
    fastest: str
    fastest_us: float

    @property
    def slower(self) -> float:
        """By which share of the fastest one's time the choice takes longer."""
        return self.us / self.fastest_us - 1

    @property
    def is_good(self) -> bool:
        """Whether it takes about as long as the fastest."""
        return self.us <= self.fastest_us * (1 + TOLERANCE)


def choice_of(row: dict[str, Any]) -> Choice:
    """What a row of the results says about the policy."""
    us, name = row["us"], row["chosen"]
    fastest = min(us, key=us.__getitem__)
    return Choice(name, us[name], fastest, us[fastest])


def greatest_fall(rows: Iterable[dict[str, Any]]) -> Pair:
    """The call that takes longest beside one with more tokens, among a model's, ascending.

    Raises:
        ValueError: there is one row.
    """
    falls = [
        Pair(one["num_tokens"], more["num_tokens"], _us(one) / _us(more) - 1)
        for one, more in itertools.combinations(rows, 2)
    ]
    return max(falls, key=lambda fall: fall.slower)


def greatest_step(rows: Iterable[dict[str, Any]]) -> Pair | None:
    """The size that takes longest beside the one before it; None if each reads more weights."""
    steps = [
        Pair(one["num_tokens"], more["num_tokens"], _us(more) / _us(one) - 1)
        for one, more in itertools.pairwise(rows)
        if more["experts_used"] <= 1.01 * one["experts_used"]
    ]
    return max(steps, key=lambda step: step.slower, default=None)


def _us(row: dict[str, Any]) -> float:
    """The time of the policy's choice."""
    return float(row["us"][row["chosen"]])


def growth_text(rows: list[dict[str, Any]]) -> str:
    """How the time grows on the fine grid of a model."""
    fall, step = greatest_fall(rows), greatest_step(rows)
    text = "no call takes longer than one with more tokens"
    if fall.slower > 0:
        text = (
            f"a call takes at most {fall.slower:.1%} longer than one with more tokens "
            f"({fall.num_tokens} beside {fall.more_tokens})"
        )
    if step is None:
        return text
    growth = max(step.slower, 0)
    return (
        f"{text}; from a size to the next with as many experts, the time grows by at most "
        f"{growth:.1%} ({step.num_tokens} to {step.more_tokens})"
    )


def _explained(shape: Shape, device: str) -> list[tessera.Implementation]:
    return tessera.explain(
        "fused_experts",
        T=shape.num_tokens,
        k=shape.top_k,
        H=shape.hidden_size,
        E=shape.num_experts,
        F=shape.intermediate_size,
        activation="silu",
        dtype=shape.dtype,
        device=device,
    )


def forced_calls(
    problem: LayerProblem, names: Iterable[str]
) -> tuple[dict[str, TimedCall], dict[str, str]]:
    """The problem's calls by the implementations of these names, all in one workspace.

    Also returns why others cannot run it.
    """
    import torch

    call = _OP.call
    no_others = (None,) * (len(_OP.inputs) - len(problem.sets[0]))

    def run(name: str, workspace: Any) -> int:
        """All calls; or only the bytes that the workspace has to have, where it is missing."""
        num_bytes = 0
        for inputs, out in zip(problem.sets, problem.outs, strict=True):
            num_bytes = call(workspace, 0, name, *inputs, *no_others, out)
        return num_bytes

    sizes, refusals = {}, {}
    for name in names:
        try:
            sizes[name] = run(name, None)
        except NotImplementedError as error:
            refusals[name] = str(error)
    workspace = None
    if num_bytes := max(sizes.values(), default=0):
        workspace = torch.empty(num_bytes, dtype=torch.uint8, device=problem.device)

    def timed(name: str) -> TimedCall:
        def run_all() -> int:
            return run(name, workspace)

        return TimedCall(
            run_all,
            lambda number: timeit.timeit(run_all, number=number),
            num_calls=len(problem.sets),
        )

    return {name: timed(name) for name in sizes}, refusals


def measure(shape: Shape, device: str = "cuda", *, others: bool = True) -> dict[str, Any]:
    """The row of a shape: the policy's choice, and microseconds by implementation.

    Args:
        shape: The ids of its tokens are the first ids of the same shape with more tokens.
        device: torch's name.
        others: whether the implementations are timed that are not the choice. Without them there
            are as many sets of inputs for each number of tokens, so that times compare.

    Raises:
        RuntimeError: an implementation computes something else, or the policy's could not be timed.
    """
    problem = make_problem(shape, device, 0, number=None if others else num_sets(1))
    reports = _explained(shape, device)
    chosen = next(report.name for report in reports if report.selected)
    names = [report.name for report in reports if others or report.selected]
    calls, refusals = forced_calls(problem, names)
    for name, call in calls.items():
        problem.poison()
        call.run()
        if why := problem.difference(lambda i, tokens: problem.outs[i][tokens]):
            raise RuntimeError(f"{name} on {shape.name}: {why}")
    times = burst(calls, QUICK)
    if chosen not in times.us:
        why = times.failures.get(chosen) or refusals[chosen]
        raise RuntimeError(f"{chosen} on {shape.name}: {why}")
    return {
        "shape": shape.name,
        **dataclasses.asdict(shape),
        "chosen": chosen,
        "experts_used": statistics.mean(one.topk_ids.unique().numel() for one in problem.sets),
        "us": times.us,
        "spread_us": times.spread_us,
        "refusals": refusals,
        "failures": times.failures,
    }


def verdict(row: dict[str, Any]) -> str:
    """The line of a shape."""
    choice = choice_of(row)
    others = ", ".join(
        f"{name} {figure(us)}" for name, us in sorted(row["us"].items(), key=lambda one: one[1])
    )
    if choice.name == choice.fastest:
        found = f"the policy picks the fastest, {choice.name}"
    else:
        found = (
            f"the fastest is {choice.fastest}, the policy picks {choice.name}, "
            f"{choice.slower:.1%} slower"
        )
    failed = "".join(f"; {name} failed: {why}" for name, why in row["failures"].items())
    return f"{row['shape']}: {found}; us: {others}{failed}"


def _tokens(text: str) -> list[int]:
    try:
        found = [int(one) for one in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers of tokens such as 1,64, got {text!r}")
    return found


def _models(text: str) -> list[str]:
    found = text.split(",")
    for name in found:
        if name not in MODELS:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(MODELS)}, got {name!r}")
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tokens",
        type=_tokens,
        metavar="N,...",
        help="times these alone, without the fine grid (default: 1, 2, 4 ... 16384)",
    )
    parser.add_argument(
        "--models",
        type=_models,
        default=list(MODELS),
        metavar="NAME,...",
        help=f"default: {', '.join(MODELS)}",
    )
    options = options_of(parser, "fused_experts_policy.json")
    if name := os.environ.get("TESSERA_IMPL"):
        sys.exit(
            "fused_experts_policy: TESSERA_IMPL: expected it unset, because it takes the policy's "
            f"place, got {name}"
        )
    about = description("cuda", options.commit) | {"methods": {"burst": MEANINGS["burst"]}}
    rows: list[dict[str, Any]] = []
    grid: list[dict[str, Any]] = []
    # The shapes of a model are neighbours, since only the last weights are kept.
    for model in options.models:
        for num_tokens in options.tokens or TOKENS:
            rows.append(measure(model_shape(model, num_tokens)))
            print(verdict(rows[-1]), flush=True)
        if not options.tokens:
            print(f"{model}: {len(GRID)} sizes from 1 to {GRID[-1]} tokens", flush=True)
            grid += [measure(model_shape(model, tokens), others=False) for tokens in GRID]
            print(f"{model}: {growth_text(grid[-len(GRID) :])}", flush=True)
        if options.json:
            write_results(options.json, about | {"rows": rows, "grid": grid})
    num_slower = sum(not choice_of(row).is_good for row in rows)
    print(
        f"the policy's choice is more than {TOLERANCE:.0%} slower than the fastest "
        f"on {num_slower} of {len(rows)} shapes"
    )
    if options.json:
        print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
