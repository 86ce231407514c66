"""The description of an op for the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tessera.contract import Violation
from tessera.tools.bench.contender import Contender


class AnyShape(Protocol):
    """A dataclass of the sizes of one problem; its fields are kept with the results."""

    @property
    def name(self) -> str:
        """Unique in a run."""
        ...


class AnyProblem(Protocol):
    """A shape with its arrays, which the op's contenders work on."""

    @property
    def shape(self) -> Any:
        """The shape."""
        ...

    def poison(self) -> None:
        """Overwrite the outputs, or the memory that the next call's will be allocated from."""

    def violations(self, outputs: tuple[Any, ...]) -> list[Violation]:
        """The violations that the op's checker finds in these outputs."""
        ...


@dataclass(frozen=True)
class Op:
    """The shapes, problems and contenders of an op.

    presets: named lists of shapes; the first is the default.
    make_problem: makes the inputs of a shape on a device, "cpu" or "cuda", from a seed.
    contenders: all contenders on a device; those that cannot run give a reason.
    results: the files of the performance page that the op's rows go to, without suffix.
    devices: where the op can be timed.
    after_shape: called when a shape has been timed; raises errors that calls deferred.
    ratios: further ratios for one shape, from microseconds of the method `call` or `burst`.
    cuda: the op as it is timed on a GPU, where shapes and contenders are others there.
    methods: what is timed without --method; empty for the usual ones of the device.
    is_timed: whether a method says anything about a shape.
    bounds: microseconds that are computed, not timed, by contender, for a problem.
    facts: what the results state besides, for all shapes.
    num_sets: of an op whose shapes have the sizes of models, which --model, --tokens, --skew and
        --log vary: how many sets of ids a problem with so many tokens takes.
    quantized: such an op as it is timed with weights in fp8, which --quantization asks for.
    errors: by contender, how far its outputs on a problem are from those without quantisation.
    """

    name: str
    presets: Mapping[str, Sequence[Any]]
    make_problem: Callable[..., AnyProblem]
    contenders: Callable[[str], list[Contender]]
    results: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")
    after_shape: Callable[[], object] = lambda: None
    ratios: Callable[[Mapping[str, float]], dict[str, float]] = lambda us: {}
    cuda: Op | None = None
    methods: tuple[str, ...] = ()
    is_timed: Callable[[Any, str], bool] = lambda shape, method: True
    bounds: Callable[[Any], dict[str, float]] = lambda problem: {}
    facts: Callable[[], dict[str, Any]] = dict
    num_sets: Callable[[int], int] | None = None
    quantized: Op | None = None
    errors: Callable[[Any], dict[str, float]] = lambda problem: {}

    def on(self, device: str, quantization: str | None = None) -> Op:
        """The op as it is timed on this device, with weights in fp8 unless that is none."""
        op = self.cuda if device == "cuda" and self.cuda is not None else self
        is_quantized = quantization not in (None, "none")
        return op.quantized if is_quantized and op.quantized is not None else op

    @property
    def usual_shapes(self) -> Sequence[Any]:
        """The shapes of the first preset."""
        return next(iter(self.presets.values()))

    def shapes(self, preset: str | None) -> Sequence[Any]:
        """The shapes of a preset; of None, the usual ones."""
        return self.usual_shapes if preset is None else self.presets[preset]
