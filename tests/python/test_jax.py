"""JAX arrays on the host: values, waiting, devices, and what cannot be done with them."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import numpy as np
import pytest

import tessera
from programs import run_program
from tessera import _frameworks
from tessera._library import load
from tessera._outputs import ALIGN, call_sizes

jax = pytest.importorskip("jax", reason="jax is not installed")

IDS = np.array([[2, 0], [1, 2], [2, 3], [0, 9]], np.int32)
GOOD: dict[str, Any] = {"block_size": 4, "num_experts": 4}
CANARY = -0x21524111
TRACED = r"expected an array, got one that JAX traces, without values \(inside jax\.jit, call "


def assert_same(found: Any, expected: Any) -> None:
    """Outputs are JAX's own, on the device of the ids, with the values of NumPy's."""
    assert isinstance(found, tessera.AlignedBlocks)
    for got, want in zip(found, expected, strict=True):
        assert isinstance(got, jax.Array)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
@pytest.mark.parametrize("shape", [(0, 2), (1,), (4, 2), (1000, 8)], ids=str)
def test_outputs_are_jax_s_with_numpy_s_values(dtype: str, shape: tuple[int, ...]) -> None:
    host = np.random.default_rng(0).integers(0, 60, shape).astype(dtype)
    options: dict[str, Any] = {"block_size": 16, "num_experts": 50, "pad_sorted_ids": True}
    expected = tessera.align_block_size(host, **options)
    topk_ids = jax.numpy.asarray(host)
    found = tessera.align_block_size(topk_ids, **options)
    assert_same(found, expected)
    np.testing.assert_array_equal(topk_ids, host)
    assert not tessera.contract_violations(topk_ids, found, **options)


def test_outputs_do_not_change_with_later_calls() -> None:
    first = tessera.align_block_size(jax.numpy.asarray(IDS), **GOOD)
    expected = [array.tolist() for array in first]
    for _ in range(20):
        tessera.align_block_size(jax.numpy.asarray(IDS[::-1]), **GOOD)
    assert [array.tolist() for array in first] == expected


def test_what_is_still_computed_is_waited_for() -> None:
    @jax.jit  # type: ignore[untyped-decorator]
    def slow_ids(seed: Any) -> tuple[Any, Any]:
        matrix = jax.random.uniform(jax.random.key(seed), (700, 700))
        for _ in range(8):
            matrix = matrix @ matrix / 350
        ids = (matrix * 1e6).astype(np.int32) % 64
        return ids, ids[0, :64] % 3

    for seed in range(5):
        topk_ids, expert_map = slow_ids(seed)
        options: dict[str, Any] = {"block_size": 64, "num_experts": 64}
        options["ignore_invalid_experts"] = True
        found = tessera.align_block_size(topk_ids, expert_map=expert_map, **options)
        host_map = np.asarray(expert_map)
        assert_same(
            found,
            tessera.align_block_size(np.asarray(topk_ids), expert_map=host_map, **options),
        )


def test_outputs_of_numpy_may_be_given() -> None:
    expected = tessera.align_block_size(IDS, **GOOD)
    out = tuple(np.full_like(array, CANARY) for array in expected)
    counts = np.empty(4, np.int32)
    found = tessera.align_block_size(jax.numpy.asarray(IDS), **GOOD, out=out, expert_counts=counts)
    assert found is out
    assert [array.tolist() for array in out] == [array.tolist() for array in expected]
    assert counts.tolist() == [2, 1, 3, 1]


@pytest.mark.parametrize("ids", ["numpy", "jax"])
@pytest.mark.parametrize(
    "name",
    ["sorted_token_ids", "expert_ids", "num_tokens_post_pad", "expert_counts", "num_dropped"],
)
def test_jax_arrays_are_not_written_to(name: str, ids: str) -> None:
    lengths = {"sorted_token_ids": 20, "expert_ids": 5, "num_tokens_post_pad": 1}
    outputs: dict[str, Any] = {key: np.full(n, CANARY, np.int32) for key, n in lengths.items()}
    others: dict[str, Any] = {}
    length = lengths.get(name, 4 if name == "expert_counts" else 1)
    given = jax.numpy.full(length, CANARY, np.int32)
    (outputs if name in lengths else others)[name] = given
    topk_ids = IDS if ids == "numpy" else jax.numpy.asarray(IDS)
    with pytest.raises(
        ValueError,
        match=rf"^align_block_size: {name}: expected a writable array, got a read-only one$",
    ):
        tessera.align_block_size(topk_ids, **GOOD, **others, out=tuple(outputs.values()))
    assert all((array == CANARY).all() for array in [*outputs.values(), *others.values()])


def test_outputs_of_a_jax_call_are_not_written_to() -> None:
    topk_ids = jax.numpy.asarray(IDS)
    out = tessera.align_block_size(topk_ids, **GOOD)
    before = [array.tolist() for array in out]
    others = jax.numpy.zeros_like(topk_ids)
    calls: list[Any] = [
        lambda: tessera.align_block_size(others, **GOOD, out=out),
        lambda: tessera.batched_align_block_size(
            others[0].astype("int32"), max_tokens_per_batch=1, block_size=1, out=out
        ),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match=r"align_block_size: sorted_token_ids: expected a writable array"
        ):
            call()
    assert [array.tolist() for array in out] == before


def test_traced_arrays_are_refused() -> None:
    topk_ids, expert_map = jax.numpy.asarray(IDS), jax.numpy.arange(4)

    def of_ids(traced: Any) -> Any:
        return tessera.align_block_size(traced, **GOOD).expert_ids

    def of_map(traced: Any) -> Any:
        return tessera.align_block_size(topk_ids, expert_map=traced, **GOOD).expert_ids

    for transform in (jax.jit, jax.vmap):
        with pytest.raises(TypeError, match=f"^align_block_size: topk_ids: {TRACED}"):
            transform(of_ids)(topk_ids)
    with pytest.raises(TypeError, match=f"^align_block_size: expert_map: {TRACED}"):
        jax.jit(of_map)(expert_map)


def test_a_callback_runs_inside_jit() -> None:
    expected = tessera.align_block_size(IDS, **GOOD)
    shapes = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in expected)

    @jax.jit  # type: ignore[untyped-decorator]
    def twice(topk_ids: Any) -> Any:
        align = lambda ids: tuple(tessera.align_block_size(np.asarray(ids), **GOOD))  # noqa: E731
        return jax.tree.map(lambda array: 2 * array, jax.pure_callback(align, shapes, topk_ids))

    for got, want in zip(twice(jax.numpy.asarray(IDS)), expected, strict=True):
        np.testing.assert_array_equal(got, 2 * want)


def test_wrong_types_are_told_as_of_any_array() -> None:
    with pytest.raises(
        TypeError,
        match=r"^align_block_size: topk_ids\.dtype: expected an integer type, got bfloat16$",
    ):
        tessera.align_block_size(jax.numpy.ones(4, jax.numpy.bfloat16), **GOOD)


SEVERAL_DEVICES = """
import jax, tessera
from jax.sharding import Mesh, NamedSharding, PartitionSpec
topk_ids = jax.device_put(jax.numpy.arange(8) % 4, jax.devices()[1])
found = tessera.align_block_size(topk_ids, block_size=2, num_experts=4)
print([array.device == topk_ids.device for array in found], found.expert_ids.tolist())
sharding = NamedSharding(Mesh(jax.devices(), "x"), PartitionSpec("x"))
try:
    tessera.align_block_size(jax.device_put(topk_ids, sharding), block_size=2, num_experts=4)
except TypeError as error:
    print(error)
"""


def test_several_devices_of_the_host() -> None:
    program = [sys.executable, "-c", SEVERAL_DEVICES]
    flags = "--xla_force_host_platform_device_count=2"
    done = run_program(program, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    first, second = done.stdout.splitlines()
    assert first == "[True, True, True] [0, 1, 2, 3, -1, -1]"
    assert second.startswith(
        "align_block_size: topk_ids: expected an array that DLPack can carry, got ArrayImpl of "
        "dtype int32 ("
    )


def test_on_a_device_memory_is_jax_s_and_the_call_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[Any] = []
    kind = type(jax.numpy.asarray(IDS))
    general = _frameworks._dlpack_framework(kind).but(cuda_index=lambda array: 3)
    monkeypatch.setattr(_frameworks, "_dlpack_framework", lambda kind: general)
    framework = _frameworks._jax_framework(jax, kind)

    @contextlib.contextmanager
    def on_stream(index: int, stream: Any) -> Any:
        events.append("stream")
        yield
        events.append("end")

    monkeypatch.setattr(load(), "on_stream", on_stream)
    topk_ids = jax.numpy.asarray(IDS)
    expected = tessera.align_block_size(IDS, **GOOD)
    layout = call_sizes(ALIGN, IDS.size, (4, 4)).layout
    memory = framework.empty_int32(topk_ids, layout.length)
    scratch = framework.empty_bytes(topk_ids, 100)
    assert all(isinstance(array, jax.Array) for array in (memory, scratch))
    assert (scratch.dtype, scratch.size) == (np.int8, 100)

    def call() -> None:
        events.append("call")
        outputs = (memory, *layout.inner_lengths)
        ALIGN.joined(None, 0, None, topk_ids, None, *outputs, 4, 4)

    assert framework.launch is not None
    framework.launch(topk_ids, call)
    assert events == ["stream", "call", "end"]
    parts = framework.split(memory, layout)
    assert_same(tessera.AlignedBlocks(*parts), expected)
    assert framework.adopt is not None
    assert framework.adopt(topk_ids, parts[0]) is parts[0]

    def failing() -> None:
        raise ValueError("align_block_size: no")

    with pytest.raises(ValueError, match=r"^align_block_size: no$"):
        framework.launch(topk_ids, failing)
