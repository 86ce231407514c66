"""The ops as their tables in the C++ headers describe them, and their functions in the library."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from tessera._library import Library, load
from tessera._results import result_type


class Length(NamedTuple):
    """The length of an array or of one of its axes, by `bound`: an exact one, a minimum, or any.

    `symbol` is an index into the values that a size query returns; None stands for `constant`.
    """

    bound: str
    symbol: int | None
    constant: int

    def value(self, symbols: tuple[int, ...]) -> int:
        """The smallest legal length."""
        return self.constant if self.symbol is None else symbols[self.symbol]


class Argument(NamedTuple):
    """A row of an op's table. Fields about arrays alone are empty for numbers, and vice versa."""

    name: str
    kind: str  # "array", "int64", "int32", "flag", "float32"
    low: int = 0
    high: int = 0
    default: Any = 0  # in C++: a bool for a flag, a name of `choices`; None: no float is given
    choices: tuple[str, ...] = ()  # names that a number has
    symbol: int | None = None  # the symbol whose value the number is
    row_length_of: str | None = None  # the library fills the number in from this array's axes
    role: str = ""
    ndim: int = 0  # 0: any number of axes, and `lengths` counts all elements
    dtypes: tuple[str, ...] = ()
    same_dtype_as: str | None = None  # the argument whose type it has, if `dtypes` has that
    other_dtypes: tuple[str, ...] = ()  # types that it may have in place of that one
    made_as: tuple[str, ...] = ()  # the type of a new output where `dtypes` lacks the shared one
    lengths: tuple[Length, ...] = ()

    @property
    def is_array(self) -> bool:
        """Whether it is an array, not a number or a flag."""
        return self.kind == "array"

    @property
    def is_output(self) -> bool:
        """Whether a call writes to it."""
        return self.role.endswith("output")

    @property
    def is_float(self) -> bool:
        """Whether autograd could follow the array."""
        return any("float" in name for name in self.dtypes)

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
        listed = ("dtypes", "other_dtypes", "made_as", "choices")
        names = {name: tuple(fields.get(name, ())) for name in listed}
        return Argument(**fields | names, lengths=lengths)

    return {
        schema["op"]: _Schema(tuple(schema["symbols"]), tuple(map(argument, schema["arguments"])))
        for schema in load().read_json("schemas")
    }


@dataclass(slots=True, init=False, repr=False, eq=False)
class Op:
    """An op, by its name. All else is loaded when it is first asked for.

    Until then it is an `_UnloadedOp`: `__getattr__` makes all attributes of a class slow, and a
    call reads a dozen.

    A table has the inputs first, then the required outputs, then the numbers, then what few calls
    give: optional outputs, and further flags.
    """

    name: str
    library: Library
    arguments: tuple[Argument, ...]  # the table
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]  # those that every call writes
    numbers: tuple[Argument, ...]  # numbers and flags that every call has
    rest: tuple[Argument, ...]  # from the first optional output on
    symbols: tuple[str, ...]  # names of the values that a size query returns
    num_outputs: int
    result_type: Any  # the named tuple of several outputs
    no_others: tuple[None, ...]  # one None for each input but the first
    shaping: tuple[int, ...]  # indices of the inputs whose shapes give the lengths of outputs
    is_joined: bool  # new outputs are parts of one allocation: all are flat, and int32
    has_floats: bool  # autograd could follow an input or a required output
    fp8_inputs: tuple[int, ...]  # indices of the inputs that may be float8_e4m3fn
    fp8_outputs: tuple[int, ...]  # likewise
    has_made: bool  # a new output may have another data type than the first input

    direct: Any  # `Library.direct_call`
    # Each of these returns the missing bytes of workspace.
    call: Any  # (workspace, num_threads, implementation, *arguments)
    plain: Any  # most calls: (first input, *outputs, *numbers)
    # Like these, with one array and all lengths but the last in place of the outputs.
    joined: Any
    joined_plain: Any
    sizes: Any  # (device type, device, num_threads, implementation, int64 array, *arguments)
    explain: Any  # (device type, device, num_threads, *arguments) -> JSON
    checker: Any  # (*arguments) -> JSON

    def __new__(cls, name: str) -> Op:
        return object.__new__(_UnloadedOp)

    def __init__(self, name: str) -> None:
        self.name = name

    def _load(self) -> None:
        self.library = library = load()
        symbols, rows = _schemas()[self.name]
        optional = [i for i, row in enumerate(rows) if row.role == "optional_output"]
        end = optional[0] if optional else len(rows)
        self.arguments = rows
        self.rest = rows[end:]
        self.inputs = tuple(row for row in rows if row.is_array and not row.is_output)
        self.outputs = tuple(row for row in rows if row.role == "output")
        self.numbers = tuple(row for row in rows[:end] if not row.is_array)
        self.symbols = symbols
        self.num_outputs = len(self.outputs)
        self.result_type = result_type(tuple(row.name for row in self.outputs))
        self.no_others = (None,) * (len(self.inputs) - 1)
        self.shaping = tuple(
            i
            for i, row in enumerate(self.inputs)
            if any(length.bound == "gives" for length in row.lengths)
        )
        self.is_joined = all(row.ndim == 0 and row.dtypes == ("int32",) for row in self.outputs)
        self.fp8_inputs, self.fp8_outputs = (
            tuple(i for i, row in enumerate(rows) if "float8_e4m3fn" in row.dtypes)
            for rows in (self.inputs, self.outputs)
        )
        self.has_made = any(row.made_as for row in self.outputs)
        self.has_floats = any(row.is_float for row in (*self.inputs, *self.outputs))

        def function(name: str, *, releases_lock: bool) -> Any:
            made = library.function("op_function")(self.name, name)
            made.release_gil = releases_lock
            return made

        self.direct = library.direct_call(self.name, self.result_type)
        # Calls release the interpreter lock themselves, if they may take long.
        self.call = function("call", releases_lock=False)
        self.plain = function("call_plain", releases_lock=False)
        self.joined = function("call_joined", releases_lock=False)
        self.joined_plain = function("call_joined_plain", releases_lock=False)
        self.sizes = function("sizes", releases_lock=True)
        self.explain = function("explain", releases_lock=True)
        self.checker = library.function("op_checker")(self.name)
        self.checker.release_gil = True
        self.__class__ = Op


class _UnloadedOp(Op):
    __slots__ = ()

    def __getattr__(self, attribute: str) -> Any:
        # Not `functools.cached_property`: before Python 3.12 it takes a lock, for which a child
        # that is forked meanwhile would wait forever.
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        self._load()
        return object.__getattribute__(self, attribute)


def refuse_bool_threads(op: str, num_threads: object) -> None:
    """Refuse a bool as a number of threads: to the FFI, and to torch, it is an integer."""
    if isinstance(num_threads, bool):
        raise TypeError(f"{op}: num_threads: expected an integer, got bool")


def op_names() -> list[str]:
    """Names of all ops."""
    return list(_schemas())
