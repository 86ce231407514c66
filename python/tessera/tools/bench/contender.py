"""Contenders that can be timed: Tessera, its peers, floors, and minimum costs of a call."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import json
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

Kind = Literal["tessera", "peer", "part", "related", "floor", "cost"]

HOST_LIBRARY = "tessera_bench.so"
CUDA_LIBRARY = "tessera_bench_cuda.so"

# The folder in a checkout that scripts/build.sh bench writes them to.
_BUILD = Path("build", "bench")


class NotTimedError(Exception):
    """A contender cannot be timed on a shape, or computes something else; the message says why."""


@dataclass(frozen=True)
class TimedCall:
    """The calls of one contender on one problem, and how to time them.

    run: makes one call and returns its output arrays; for the method `chain` even if it is not an
        implementation of the op.
    seconds: host time of that many calls.
    source: the tensor on a GPU that `run` reads, for the method `chain`; None for all others.
    is_aligned: whether `run` returns the three arrays of an alignment op, of which `chain` reads
        only the used part; other arrays it reads completely.
    num_calls: how many calls `run` makes, for the methods `burst` and `sustained`.
    links: if these are several, each of them, for the method `chain`.
    check: takes the place of the op's checker; raises NotTimedError.
    """

    run: Callable[[], Any]
    seconds: Callable[[int], float]
    source: Any = None
    is_aligned: bool = True
    num_calls: int = 1
    links: Sequence[TimedCall] = ()
    check: Callable[[], None] | None = None

    @staticmethod
    def of(
        function: Callable[[], Any], source: Any = None, *, is_aligned: bool = True
    ) -> TimedCall:
        """A call timed by a loop in Python."""
        seconds = functools.partial(timeit.timeit, function)
        return TimedCall(function, lambda number: seconds(number=number), source, is_aligned)

    @staticmethod
    def in_turn(calls: Sequence[TimedCall]) -> TimedCall:
        """A call that cycles through several calls, timed by a loop in Python."""
        following = itertools.cycle([call.run for call in calls]).__next__
        return TimedCall.of(lambda: following()())


@dataclass(frozen=True)
class Contender:
    """A contender; `unavailable` and `refusal` give the reason if it cannot run, else are empty.

    `version` is the version of another project's package.

    A part is a peer that does only some of the op's work. A related contender is another op that
    does comparable work. A floor only does the memory
    traffic that every implementation needs. A cost is a call from Python that does nothing.
    """

    name: str
    kind: Kind
    methods: tuple[str, ...]
    prepare: Callable[[Any], TimedCall]
    unavailable: str = ""
    version: str = ""
    refusal: Callable[[Any], str] = lambda shape: ""
    # For contenders timed in C++: a call that cycles through problems of one shape there.
    prepare_in_turn: Callable[[Sequence[Any]], TimedCall] | None = None

    @property
    def is_checked(self) -> bool:
        """Whether its outputs are checked against the contract."""
        return self.kind in ("tessera", "peer", "part")

    def prepare_all(self, problems: Sequence[Any]) -> TimedCall:
        """A call that cycles through these problems of one shape; there may be only one."""
        if len(problems) == 1:
            return self.prepare(problems[0])
        if self.prepare_in_turn is not None:
            return self.prepare_in_turn(problems)
        return TimedCall.in_turn([self.prepare(problem) for problem in problems])


def absent(name: str, kind: Kind, reason: str) -> Contender:
    """A contender that cannot run here."""

    def prepare(problem: Any) -> TimedCall:
        raise RuntimeError(f"{name}: {reason}")

    return Contender(name, kind, (), prepare, unavailable=reason)


class NativeLibrary:
    """A shared object of peers, from the checkout that this package was installed from."""

    def __init__(self, file_name: str) -> None:
        import tvm_ffi

        checkout = _checkout()
        if checkout is None:
            raise OSError(
                f"{file_name} is in no package: in a checkout of Tessera, run scripts/build.sh "
                "bench and then .venv/bin/tessera bench"
            )
        path = checkout / _BUILD / file_name
        if not path.exists():
            raise OSError(f"{path} is missing: run scripts/build.sh bench in {checkout}")
        self._module = tvm_ffi.load_module(path)

    def function(self, name: str, *, release_gil: bool = True) -> Any:
        """A function of the library. Short ones should keep the interpreter lock, like the op."""
        function = self._module.get_function(name)
        function.release_gil = release_gil
        return function


def _checkout() -> Path | None:
    """The folder that pip installed the package from; None if that was a wheel."""
    text = importlib.metadata.distribution("tessera").read_text("direct_url.json")
    url = json.loads(text or "{}").get("url", "")
    path = Path(url2pathname(urlsplit(url).path))
    return path if url.startswith("file:") and path.is_dir() else None


@functools.cache
def native_library(file_name: str) -> NativeLibrary:
    """A library of peers, loaded at first use.

    Raises:
        OSError: it is not built; the message says how to build it.
    """
    return NativeLibrary(file_name)
