"""What is the same in every op: which argument an error names, of a foreign array."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import tessera
from foreign_arrays import Malformed
from small_calls import CALLS
from tessera._op import Op, op_names

INPUTS = [(op, row) for op in CALLS for row in Op(op).inputs]


def test_every_op_has_a_call() -> None:
    assert sorted(CALLS) == sorted(op_names())


def with_input(op: str, name: str, array: Any) -> dict[str, Any]:
    """The arguments of a call by name, with another array."""
    arrays, numbers = CALLS[op]
    names = inspect.signature(getattr(tessera, op)).parameters
    return dict(zip(names, arrays, strict=False)) | numbers | {name: array}


@pytest.mark.parametrize("given", ["new", "out"])
@pytest.mark.parametrize(("op", "row"), INPUTS, ids=lambda one: getattr(one, "name", one))
def test_malformed_inputs(op: str, row: Any, given: str) -> None:
    arrays, numbers = CALLS[op]
    function = getattr(tessera, op)
    out = function(*arrays, **numbers) if given == "out" else None
    dtype = "float32" if "float32" in row.dtypes else "int32"
    with pytest.raises(TypeError) as caught:
        function(**with_input(op, row.name, Malformed(dtype, 4, ndim=-1)), out=out)
    assert str(caught.value) == (
        f"{op}: {row.name}: expected a DLPack tensor of 0 or more axes, got one with a negative "
        "ndim"
    )
    # 64 bits count neither number of elements. Of the first, which wraps, nothing would be left.
    for lengths in ((2**40, 2**40), (2**31 - 1,) * 3):
        with pytest.raises(ValueError) as caught:
            function(**with_input(op, row.name, Malformed(dtype, *lengths)), out=out)
        # Lengths of w2 say what those of w13 have to be.
        about_w2 = f"{op}: w13.shape[1]: expected {2 * (2**31 - 1)}, twice w2.shape[2] = "
        assert str(caught.value).startswith((f"{op}: {row.name}", about_w2))


def test_malformed_outputs() -> None:
    for op, (arrays, numbers) in CALLS.items():
        out = getattr(tessera, op)(*arrays, **numbers)
        for i, row in enumerate(Op(op).outputs):
            for array, error in (
                (Malformed("float32", 4, ndim=-1), TypeError),
                (Malformed("float32", 2**40, 2**40), (TypeError, ValueError)),
            ):
                given = (*out[:i], array, *out[i + 1 :]) if isinstance(out, tuple) else array
                with pytest.raises(error) as caught:
                    getattr(tessera, op)(*arrays, **numbers, out=given)
                name = row.name
                assert str(caught.value).startswith(f"{op}: {name}")
