"""How an op is described to the benchmark."""

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
        """What the op's checker says of these outputs."""
        ...


@dataclass(frozen=True)
class Op:
    """What is timed of an op, and beside whom.

    presets: named lists of shapes; the first is the usual one.
    make_problem: the inputs of a shape on a device, "cpu" or "cuda", by a seed.
    contenders: all of them on a device; those that cannot run say why.
    results: the files of the performance page that the op's rows go to, without suffix.
    after_shape: called when a shape has been timed; raises what calls left to be raised later.
    ratios: by microseconds of the method `call`, what else the times of one shape are measured for.
    """

    name: str
    presets: Mapping[str, Sequence[Any]]
    make_problem: Callable[..., AnyProblem]
    contenders: Callable[[str], list[Contender]]
    results: str = ""
    after_shape: Callable[[], object] = lambda: None
    ratios: Callable[[Mapping[str, float]], dict[str, float]] = lambda us: {}

    @property
    def usual_shapes(self) -> Sequence[Any]:
        """The shapes of the first preset."""
        return next(iter(self.presets.values()))
