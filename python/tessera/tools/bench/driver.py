"""Checks, for every shape, every contender's outputs, then times all that can run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.tools.bench.cold import cold_times
from tessera.tools.bench.contender import Contender, NotTimedError
from tessera.tools.bench.judgement import below_floor, judged_methods, less_flattering, speeds
from tessera.tools.bench.machine import description
from tessera.tools.bench.methods import MEANINGS, METHODS, QUICK, Effort, Times, missing
from tessera.tools.bench.op import AnyProblem, AnyShape, Op
from tessera.tools.bench.ops import align_block_size

_DEVICE_METHODS = {
    "cpu": ("call", "eager"),
    "cuda": ("graph", "chain", "l2", "eager", "cold", "burst", "sustained"),
}


class ContractBrokenError(Exception):
    """Tessera's own outputs break the contract, so timing makes no sense."""


@dataclass(frozen=True)
class Request:
    """The measurements to make.

    shapes: shapes of the op, of the type in its presets.
    peers: None stands for all.
    windows: by the shapes' `trace` and `num_tokens`, the ids of logs, [windows, tokens, top_k]. A
        time is the mean over the windows.
    """

    device: str
    shapes: Sequence[Any]
    methods: Sequence[str]
    peers: Sequence[str] | None = None
    windows: Mapping[tuple[str, int], npt.NDArray[np.int32]] = field(default_factory=dict)
    seed: int = 0
    effort: Effort = QUICK
    commit: str | None = None
    op: Op = align_block_size.OP

    def check(self, contenders: Sequence[Contender]) -> None:
        """Refuse unknown methods and peers, before any work."""
        offered = {method for one in contenders for method in one.methods}
        known = [method for method in _DEVICE_METHODS[self.device] if method in offered]
        for method in self.methods:
            if method not in known:
                raise ValueError(
                    f"--method: expected some of {', '.join(known)} with --device {self.device}, "
                    f"got {method}"
                )
        known_peers = sorted({one.name.partition("/")[0] for one in contenders if _is_peer(one)})
        for name in self.peers or ():
            if name not in known_peers:
                some = f"some of {', '.join(known_peers)}" if known_peers else "none"
                raise ValueError(f"--peers: expected {some}, got {name}")

    def wants(self, contender: Contender) -> bool:
        """Whether to measure a contender; only peers can be deselected."""
        if self.peers is None or not _is_peer(contender):
            return True
        return contender.name.partition("/")[0] in self.peers

    def problems(self, shape: Any) -> list[AnyProblem]:
        """The shape's problem, or one per window of its log."""
        make = self.op.make_problem
        if getattr(shape, "trace", ""):
            windows = self.windows[shape.trace, shape.num_tokens]
            return [make(shape, self.device, self.seed, ids) for ids in windows]
        return [make(shape, self.device, self.seed)]


def _is_peer(contender: Contender) -> bool:
    return contender.kind in ("peer", "part")


def measure(request: Request, progress: Callable[[str], object] = lambda shape: None) -> Any:
    """The results as one JSON document; calls `progress` with the name of each shape in turn.

    Raises:
        ValueError: the request has unknown methods or peers.
        ContractBrokenError: Tessera's outputs are wrong.
    """
    everyone = request.op.contenders(request.device)
    request.check(everyone)
    wanted = [one for one in everyone if request.wants(one)]
    present = [one for one in wanted if not one.unavailable]
    unusable = {method: why for method in request.methods if (why := missing(method))}
    usable = [method for method in request.methods if method not in unusable]
    facts = request.op.facts()
    rows = []
    for shape in request.shapes:
        progress(shape.name)
        rows.append(_measured_row(request, shape, usable, present))
    return {
        **description(request.device, request.commit),
        **facts,
        "seed": request.seed,
        "methods": {method: MEANINGS[method] for method in usable},
        "methods_unavailable": unusable,
        "contenders": {
            one.name: {"kind": one.kind, "unavailable": one.unavailable, "version": one.version}
            for one in wanted
        },
        "rows": rows,
    }


def joined(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows of several measurements by the same methods, with all their contenders."""
    contenders = {name: one for each in documents for name, one in each["contenders"].items()}
    found = [row for each in documents for row in each["rows"]]
    return {**documents[0], "contenders": contenders, "rows": found}


def _measured_row(
    request: Request, shape: Any, methods: Sequence[str], present: Sequence[Contender]
) -> dict[str, Any]:
    problems = request.problems(shape)
    row: dict[str, Any] = {"op": request.op.name, "shape": shape.name, **dataclasses.asdict(shape)}
    refusals = {one.name: why for one in present if (why := one.refusal(shape))}
    runners = [one for one in present if one.name not in refusals]
    found: dict[str, dict[str, dict[str, Any]]] = {
        one.name: {} for one in dataclasses.fields(Times)
    }
    violations: dict[str, list[str]] = {}
    judged: set[str] = set()
    timed = [method for method in methods if request.op.is_timed(shape, method)]
    for method in timed:
        entrants = [one for one in runners if method in one.methods and one.name not in refusals]
        calls = {}
        for one in entrants:
            try:
                if one.is_checked and one.name not in judged:
                    judged.add(one.name)
                    if broken := _broken_rules(problems, one):
                        violations[one.name] = broken
                calls[one.name] = one.prepare_all(problems)
            except NotTimedError as error:
                refusals[one.name] = str(error)
        if method == "cold":
            times = cold_times(shape, list(calls))
        else:
            times = METHODS[method](calls, request.effort)
        _require_ours(shape, method, entrants, times)
        for key, of_method in dataclasses.asdict(times).items():
            for name, value in of_method.items():
                found[key].setdefault(name, {})[method] = value
    for name, us in request.op.bounds(problems[0]).items():
        found["us"][name] = dict.fromkeys(timed, us)
    request.op.after_shape()
    row |= {**found, "violations": violations, "refusals": refusals}
    if errors := request.op.errors(problems[0]):
        row["errors"] = {one.name: errors[one.name] for one in present if one.name in errors}
    return row | _judgement(request.op, found["us"], {one.name: one.kind for one in present})


def _broken_rules(problems: Sequence[AnyProblem], contender: Contender) -> list[str]:
    """The violations of a contender on the first problem on which it has any."""
    for problem in problems:
        call = contender.prepare(problem)
        if call.check is not None:
            call.check()
            continue
        problem.poison()
        if broken := problem.violations(call.run()):
            if contender.kind == "tessera":
                raise ContractBrokenError(
                    f"{contender.name} breaks the contract on {problem.shape.name}: "
                    f"{broken[0].message}"
                )
            return [violation.message for violation in broken]
    return []


def _require_ours(
    shape: AnyShape, method: str, entrants: Sequence[Contender], times: Times
) -> None:
    for one in entrants:
        if one.kind == "tessera" and one.name in times.failures:
            raise RuntimeError(
                f"{one.name} on {shape.name}, method {method}: {times.failures[one.name]}"
            )


def _judgement(
    op: Op, us: Mapping[str, Mapping[str, float]], kinds: Mapping[str, str]
) -> dict[str, Any]:
    """Ratios of the shape, by the less flattering of two methods, and beaten floors."""
    ratios = {}
    for kind, name in (("peer", "Tessera / best peer"), ("floor", "Tessera / floor")):
        if (found := less_flattering(us, kinds, kind)) is not None:
            ratios[name] = found
    for method in {"call", "burst"} & set(judged_methods(us)):
        ratios |= op.ratios(speeds(us, method))
    return {"ratios": ratios, "below_floor": below_floor(us, kinds)}
