"""The inputs of `fused_experts` on a GPU, the calls of a graph, and their checks."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import tessera
from tessera.contract import Violation
from tessera.tools.bench.calls import required_torch
from tessera.tools.bench.contender import TimedCall
from tessera.tools.bench.ops.fused_experts import NEAR
from tessera.tools.bench.ops.fused_experts_fp8 import Fp8Weights
from tessera.tools.bench.ops.fused_experts_inputs import (
    Accuracy,
    Inputs,
    Shape,
    input_sets,
    reference,
    spread,
    weights_in_fp8,
)

# Up to so many tokens a graph has this many calls with different ids, so that the caches do not
# hold the experts of the next call.
_FEW_TOKENS, _NUM_SETS = 64, 4

# Tokens of a set that are compared with the reference, and those that go through the checker.
_COMPARED, _JUDGED = 16, 2

# How far a token may be off the reference with weights in fp8, over the token's norm: the reference
# takes x and the intermediate as they are, and quantising both moves an output by some 5%.
NEAR_IN_FP8 = 1e-1


@dataclass(frozen=True)
class LayerProblem:
    """The calls of one graph: sets of inputs, and the arrays that Tessera writes to.

    weights: the weights with their scales; None where they are not in fp8.
    accuracy: with weights in fp8, finds the error of an output.
    calls: by contender, what has been prepared for this problem.
    errors: by contender, what `accuracy` finds, once the contender is checked.
    """

    shape: Shape
    device: str
    sets: Sequence[Inputs]
    outs: Sequence[Any]
    weights: Fp8Weights | None = None
    accuracy: Accuracy | None = None
    calls: dict[str, TimedCall] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def scales(self) -> dict[str, Any]:
        """The scales of weights in fp8, by the names of the op's arguments."""
        return self.weights.scales if self.weights else {}

    def poison(self) -> None:
        """Fill Tessera's outputs with NaN."""
        for out in self.outs:
            out.fill_(float("nan"))

    def violations(self, outputs: tuple[Any, ...]) -> list[Violation]:
        """What the checker finds in some tokens, or a difference from the reference in more."""
        for inputs, output in zip(self.sets, outputs, strict=True):
            number = 1 if len(self.sets) > 1 else _JUDGED
            tokens = spread(self.shape.num_tokens, number)
            found, ids = inputs.topk_ids[tokens].unique(return_inverse=True)
            experts = found.long()
            # Only the weights that the tokens use: the checker copies all that it gets to the host.
            arguments = (
                inputs.x[tokens],
                _taken(inputs.w13, experts),
                _taken(inputs.w2, experts),
                inputs.topk_weights[tokens],
                ids.view(len(tokens), -1).int(),
                output[tokens],
            )
            on_host = [each.cpu() for each in arguments]
            scales = {name: each[experts].cpu() for name, each in self.scales.items()}
            if broken := tessera.fused_experts_contract_violations(*on_host, **scales):
                return list(broken)
        if why := self.difference(lambda i, tokens: outputs[i][tokens]):
            return [Violation("near_reference", "output", 0, 0, 0, why)]
        self.compare("tessera", lambda inputs: tessera.fused_experts(*inputs, **self.scales))
        return []

    def compare(self, name: str, function: Callable[[Inputs], Any]) -> None:
        """Find the error of a contender, which computes the layer of a set of inputs."""
        if self.accuracy is not None:
            self.errors[name] = self.accuracy.error(function(self.accuracy.inputs))

    def difference(self, rows_of: Callable[[int, Any], Any]) -> str:
        """How outputs differ from the reference; empty if all are near.

        Args:
            rows_of: gives the output's rows [n, H] of a set, by its number, for n tokens.
        """
        weights_of = self.weights.dequantized if self.weights else None
        limit = NEAR_IN_FP8 if self.weights else NEAR[self.shape.dtype]
        for i, inputs in enumerate(self.sets):
            tokens = spread(self.shape.num_tokens, _COMPARED)
            expected = reference(inputs, tokens, weights_of)
            off = (rows_of(i, tokens).float() - expected).norm(dim=1) / expected.norm(dim=1)
            if not bool((off <= limit).all()):
                return (
                    f"expected at most {limit:.0e} off a float32 reference, "
                    f"got {float(off.max()):.0e}"
                )
        return ""


def make_problem(
    shape: Shape,
    device: str,
    seed: int,
    log_ids: npt.NDArray[np.int32] | None = None,
    *,
    number: int | None = None,
) -> LayerProblem:
    """So many sets of inputs; by default one, or for few tokens several."""
    torch = required_torch("fused_experts")
    sets = input_sets(shape, device, seed, number or num_sets(shape.num_tokens), log_ids)
    weights = weights_in_fp8(shape, device, seed)
    accuracy = Accuracy(sets[0], weights, seed) if weights else None
    outs = [torch.empty_like(one.x) for one in sets]
    return LayerProblem(shape, device, sets, outs, weights, accuracy)


def _taken(weights: Any, experts: Any) -> Any:
    """The weights of some experts; torch has versions that index no float8_e4m3fn."""
    import torch

    return weights.view(torch.uint8)[experts].view(weights.dtype)


def num_sets(num_tokens: int) -> int:
    """How many calls with different inputs a graph has."""
    return _NUM_SETS if num_tokens <= _FEW_TOKENS else 1


def call_of(
    problem: LayerProblem,
    functions: Sequence[Callable[[], Any]],
    check: Callable[[], None] | None = None,
) -> TimedCall:
    """The calls of a graph, of which each function makes one on a set and returns its output."""

    def run() -> tuple[Any, ...]:
        return tuple(function() for function in functions)

    def link(function: Callable[[], Any], inputs: Inputs) -> TimedCall:
        return TimedCall.of(lambda: (function(),), inputs.x, is_aligned=False)

    return TimedCall(
        run,
        lambda number: timeit.timeit(run, number=number),
        num_calls=len(functions),
        links=list(map(link, functions, problem.sets)),
        check=check,
    )
