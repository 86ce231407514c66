"""The ops as their tables in the C++ headers describe them, and their functions in the library."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from tessera._library import load

Value = TypeVar("Value")


class _lazy(Generic[Value]):  # noqa: N801
    """An attribute made when it is first asked for.

    `functools.cached_property` takes a lock in Python before 3.12, which a child that is forked
    meanwhile would wait for.
    """

    def __init__(self, make: Callable[[Any], Value]) -> None:
        self.make = make

    def __get__(self, op: Any, owner: type) -> Value:
        op.__dict__[self.make.__name__] = value = self.make(op)
        return value


class Length(NamedTuple):
    """How long an array, or one of its axes, is: exactly or at least so many; or it gives a symbol.

    `symbol` is an index into the values that a size query answers; None stands for `constant`.
    """

    bound: str
    symbol: int | None
    constant: int

    def value(self, symbols: tuple[int, ...]) -> int:
        """The smallest legal length."""
        return self.constant if self.symbol is None else symbols[self.symbol]


class Argument(NamedTuple):
    """A row of an op's table; what only arrays or only numbers have is empty for the others."""

    name: str
    kind: str  # "array", "int64", "int32", "flag"
    low: int = 0
    high: int = 0
    symbol: int | None = None  # that the number gives its value
    row_length_of: str | None = None  # the library fills the number in from this array's axes
    role: str = ""
    ndim: int = 0  # 0: any number of axes, and `lengths` counts all elements
    dtypes: tuple[str, ...] = ()
    same_dtype_as: str | None = None
    lengths: tuple[Length, ...] = ()

    @property
    def is_array(self) -> bool:
        """Whether it is no number."""
        return self.kind == "array"

    @property
    def is_output(self) -> bool:
        """Whether a call writes to it."""
        return self.role.endswith("output")

    @property
    def is_optional(self) -> bool:
        """Whether an array need not be given."""
        return self.role.startswith("optional")


class _Schema(NamedTuple):
    symbols: tuple[str, ...]
    arguments: tuple[Argument, ...]


@functools.cache
def _schemas() -> dict[str, _Schema]:
    def argument(fields: dict[str, Any]) -> Argument:
        lengths = tuple(Length(**length) for length in fields.pop("lengths", ()))
        return Argument(**fields | {"dtypes": tuple(fields.get("dtypes", ()))}, lengths=lengths)

    return {
        schema["op"]: _Schema(tuple(schema["symbols"]), tuple(map(argument, schema["arguments"])))
        for schema in load().read_json("schemas")
    }


class Op:
    """An op, by its name. Nothing is loaded before one of its attributes is asked for.

    A table has the inputs first, then the required outputs, then the numbers, then what few calls
    give: optional outputs, and further flags.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @_lazy
    def arguments(self) -> tuple[Argument, ...]:
        """The table."""
        return _schemas()[self.name].arguments

    @_lazy
    def num_symbols(self) -> int:
        """Values that a size query answers."""
        return len(_schemas()[self.name].symbols)

    @_lazy
    def inputs(self) -> tuple[Argument, ...]:
        """The arrays that a call reads."""
        return tuple(row for row in self.arguments if row.is_array and not row.is_output)

    @_lazy
    def outputs(self) -> tuple[Argument, ...]:
        """The arrays that every call writes."""
        return tuple(row for row in self.arguments if row.role == "output")

    @_lazy
    def rest(self) -> tuple[Argument, ...]:
        """From the first optional output on, what few calls give."""
        optional = [i for i, row in enumerate(self.arguments) if row.role == "optional_output"]
        return self.arguments[optional[0] :] if optional else ()

    @_lazy
    def numbers(self) -> tuple[Argument, ...]:
        """The numbers and flags of every call."""
        end = len(self.arguments) - len(self.rest)
        return tuple(row for row in self.arguments[:end] if not row.is_array)

    @_lazy
    def is_joined(self) -> bool:
        """Whether new outputs are parts of one allocation: all are flat, and int32."""
        return all(row.ndim == 0 and row.dtypes == ("int32",) for row in self.outputs)

    @_lazy
    def float_outputs(self) -> tuple[int, ...]:
        """Places of the outputs that autograd could follow."""
        places = enumerate(self.outputs)
        return tuple(i for i, row in places if any("float" in name for name in row.dtypes))

    @_lazy
    def counters(self) -> tuple[int, ...]:
        """Places of the numbers that lengths depend on as they are, such as `num_experts`."""
        return tuple(i for i, row in enumerate(self.numbers) if row.symbol is not None)

    def function(self, name: str, *, keeps_lock: bool = False) -> Any:
        """A function of the op in the library; runs without the interpreter lock unless told."""
        function = load().function("op_function")(self.name, name)
        function.release_gil = not keeps_lock
        return function

    # Of each way to call the op one that lets go of the interpreter lock, and one that does not: to
    # let go of it and take it back costs a short call more than other threads gain.
    @_lazy
    def call_long(self) -> Any:
        """(workspace, num_threads, implementation, *arguments) -> missing bytes of workspace."""
        return self.function("call")

    @_lazy
    def call_short(self) -> Any:
        """The same with the interpreter lock held."""
        return self.function("call", keeps_lock=True)

    @_lazy
    def joined_long(self) -> Any:
        """The same with one array, and all lengths but the last, in place of the outputs."""
        return self.function("call_joined")

    @_lazy
    def joined_short(self) -> Any:
        """The same with the interpreter lock held."""
        return self.function("call_joined", keeps_lock=True)

    @_lazy
    def sizes(self) -> Any:
        """(device type, device, num_threads, implementation, int64 array, *arguments)."""
        return self.function("sizes")

    @_lazy
    def explain(self) -> Any:
        """(device type, device, num_threads, *arguments) -> JSON."""
        return self.function("explain")

    @_lazy
    def checker(self) -> Any:
        """(*arguments) -> JSON."""
        checker: Any = load().function("op_checker")(self.name)
        checker.release_gil = True
        return checker


def op_names() -> list[str]:
    """Names of all ops."""
    return list(_schemas())
