"""What can be timed: Tessera, its peers, floors, and what a call costs at least."""

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

Kind = Literal["tessera", "peer", "related", "floor", "cost"]

HOST_LIBRARY = "tessera_bench.so"
CUDA_LIBRARY = "tessera_bench_cuda.so"

# Where scripts/build.sh bench puts them, in a checkout.
_BUILD = Path("build", "bench")


@dataclass(frozen=True)
class Call:
    """One contender on one problem.

    run: one call; the arrays of its outputs, for the method `chain` also where it is no
        implementation of the op.
    seconds: host time of that many calls.
    source: the tensor on a GPU that `run` reads, for the method `chain`; None for all others.
    is_aligned: whether `run` gives the three arrays of an alignment op, of which `chain` reads what
        is in use; of others it reads everything.
    """

    run: Callable[[], Any]
    seconds: Callable[[int], float]
    source: Any = None
    is_aligned: bool = True

    @staticmethod
    def of(function: Callable[[], Any], source: Any = None, *, is_aligned: bool = True) -> Call:
        """A call timed by a loop in Python."""
        seconds = functools.partial(timeit.timeit, function)
        return Call(function, lambda number: seconds(number=number), source, is_aligned)

    @staticmethod
    def in_turn(calls: Sequence[Call]) -> Call:
        """Goes round several calls, timed by a loop in Python."""
        following = itertools.cycle([call.run for call in calls]).__next__
        return Call.of(lambda: following()())


@dataclass(frozen=True)
class Contender:
    """A contender; `unavailable` and `refusal` say why not, and are empty if nothing is amiss.

    `version` is that of a package of others.

    A related contender is another op that does comparable work. A floor does what no implementation
    can do without, and computes nothing. A cost is what a call from Python takes that does nothing.
    """

    name: str
    kind: Kind
    methods: tuple[str, ...]
    prepare: Callable[[Any], Call]
    unavailable: str = ""
    version: str = ""
    refusal: Callable[[Any], str] = lambda shape: ""
    # For those timed in C++: a call that goes round problems of one shape there.
    prepare_in_turn: Callable[[Sequence[Any]], Call] | None = None

    @property
    def is_checked(self) -> bool:
        """Whether its outputs are to be judged by the contract."""
        return self.kind in ("tessera", "peer")

    def prepare_all(self, problems: Sequence[Any]) -> Call:
        """A call that goes round these problems of one shape, or has only one."""
        if len(problems) == 1:
            return self.prepare(problems[0])
        if self.prepare_in_turn is not None:
            return self.prepare_in_turn(problems)
        return Call.in_turn([self.prepare(problem) for problem in problems])


def absent(name: str, kind: Kind, reason: str) -> Contender:
    """A contender that cannot run here."""

    def prepare(problem: Any) -> Call:
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
        """A function of it. A short one had better keep the interpreter lock, as the op does."""
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
    """A library of peers, loaded the first time.

    Raises:
        OSError: it is not built; the message says how to build it.
    """
    return NativeLibrary(file_name)
