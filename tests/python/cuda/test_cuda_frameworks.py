"""CuPy's and JAX's arrays on a CUDA device."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest

import tessera
from cuda_calls import SHAPES, assert_same, host_ids, options_of
from fused_experts_calls import assert_near_model, call


@pytest.fixture(scope="module")
def cupy() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def jax() -> Any:
    # Otherwise it takes most of the device's memory, of which other tests need some.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jax = pytest.importorskip("jax", reason="JAX is not installed", exc_type=ImportError)
        if jax.default_backend() != "gpu":
            pytest.skip("JAX is installed without its CUDA plugin")
    return jax


def expected(topk_ids: Any, shape: tuple[int, int, int, int], **options: Any) -> Any:
    return tessera.align_block_size(topk_ids, **options_of(shape), **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cupy_gets_its_own_arrays(cupy: Any, shape: tuple[int, int, int, int]) -> None:
    host = host_ids(shape, 1)
    topk_ids = cupy.asarray(host)
    counts = cupy.empty(shape[1], cupy.int32)
    found = tessera.align_block_size(topk_ids, **options_of(shape), expert_counts=counts)
    assert all(isinstance(array, cupy.ndarray) for array in found)
    assert_same(map(cupy.asnumpy, found), expected(host, shape))
    want = np.bincount(host.reshape(-1), minlength=shape[1])
    np.testing.assert_array_equal(cupy.asnumpy(counts), want)

    out = tuple(cupy.full_like(array, 77) for array in found)
    again = tessera.align_block_size(topk_ids, **options_of(shape), out=out)
    assert again is out
    assert_same(map(cupy.asnumpy, out), expected(host, shape))


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_runs_on_cupy_s_current_stream(cupy: Any, shape: tuple[int, int, int, int]) -> None:
    import torch

    new = host_ids(shape, 2)
    topk_ids = cupy.full(new.shape, -1, cupy.int32)
    source = cupy.asarray(new)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
            torch.cuda._sleep(20_000_000)  # some ten milliseconds: another stream would be first
        topk_ids[...] = source
        found = tessera.align_block_size(topk_ids, **options_of(shape))
        host = [array.get(stream=stream) for array in found]
        stream.synchronize()
    assert_same(host, expected(new, shape))


def test_cupy_on_a_device_that_is_not_the_current_one(cupy: Any) -> None:
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("no second CUDA device")
    for shape in SHAPES:
        host = host_ids(shape, 3)
        with cupy.cuda.Device(1):
            topk_ids = cupy.asarray(host)
        found = tessera.align_block_size(topk_ids, **options_of(shape))
        assert {array.device.id for array in found} == {1}
        assert_same(map(cupy.asnumpy, found), expected(host, shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_jax_gets_its_own_arrays(jax: Any, shape: tuple[int, int, int, int]) -> None:
    host = host_ids(shape, 1, broken=True)
    topk_ids = jax.numpy.asarray(host)
    found = tessera.align_block_size(topk_ids, **options_of(shape))
    assert all(isinstance(array, jax.Array) for array in found)
    assert all(array.device == topk_ids.device for array in found)
    assert_same(map(np.asarray, found), expected(host, shape))
    np.testing.assert_array_equal(topk_ids, host)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_jax_s_pending_ids_are_waited_for_and_kept(
    jax: Any, shape: tuple[int, int, int, int]
) -> None:
    host = host_ids(shape, 2)
    half = np.arange(shape[1], dtype=np.int32) // 2

    @jax.jit  # type: ignore[untyped-decorator]
    def late(ids: Any) -> Any:
        matrix = jax.numpy.ones((4096, 4096))
        for _ in range(10):
            matrix = matrix @ matrix / 4096
        return ids * matrix[0, 0].astype(np.int32), half * matrix[1, 1].astype(np.int32)

    late(jax.numpy.asarray(host))[0].block_until_ready()
    sums = []
    for _ in range(10):
        topk_ids, expert_map = late(jax.numpy.asarray(host))
        found = tessera.align_block_size(topk_ids, expert_map=expert_map, **options_of(shape))
        del topk_ids, expert_map
        # JAX may take the memory of what was deleted, and reads the outputs right away.
        jax.numpy.full(host.shape, 99)
        sums.append([int(array.sum()) for array in found])
    want = [int(array.sum(dtype=np.int32)) for array in expected(host, shape, expert_map=half)]
    assert sums == [want] * 10
    assert_same(map(np.asarray, found), expected(host, shape, expert_map=half))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_jax_s_ids_with_outputs_of_torch(jax: Any, shape: tuple[int, int, int, int]) -> None:
    import torch

    host = host_ids(shape, 3)
    want = expected(host, shape)
    out = tuple(torch.full(array.shape, 77, dtype=torch.int32, device="cuda") for array in want)
    torch.cuda.synchronize()
    found: Any = tessera.align_block_size(jax.numpy.asarray(host), **options_of(shape), out=out)
    assert found is out
    assert_same(out, want)


def test_jax_on_the_second_device(jax: Any) -> None:
    if len(jax.devices()) < 2:
        pytest.skip("no second CUDA device")
    for shape in SHAPES:
        host = host_ids(shape, 4)
        topk_ids = jax.device_put(host, jax.devices()[1])
        found = tessera.align_block_size(topk_ids, **options_of(shape))
        assert all(array.device == jax.devices()[1] for array in found)
        assert_same(map(np.asarray, found), expected(host, shape))


def test_jax_arrays_on_a_device_are_not_written_to(jax: Any) -> None:
    import torch

    host = host_ids(SHAPES[2], 5)
    arrays = [jax.numpy.full(a.shape, 77, np.int32) for a in expected(host, SHAPES[2])]
    for topk_ids in (torch.from_numpy(host).cuda(), jax.numpy.asarray(host)):
        with pytest.raises(
            ValueError, match=r"sorted_token_ids: expected a writable array, got a read-only one$"
        ):
            tessera.align_block_size(topk_ids, **options_of(SHAPES[2]), out=tuple(arrays))
    assert all((array == 77).all() for array in arrays)


# One tile of pairs, and several.
EXPERTS: list[dict[str, Any]] = [{"tokens": 5}, {"tokens": 300, "hidden": 64, "intermediate": 48}]


@pytest.mark.parametrize("sizes", EXPERTS, ids=str)
def test_cupy_s_experts(cupy: Any, sizes: dict[str, Any]) -> None:
    arguments = call(1, dtype="float16", biases=True, **sizes)
    placed = {
        name: cupy.asarray(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }
    found = tessera.fused_experts(**placed)
    assert isinstance(found, cupy.ndarray)
    assert_near_model(cupy.asnumpy(found), "float16", arguments)
    out = cupy.full_like(found, 77)
    assert tessera.fused_experts(**placed, out=out) is out
    np.testing.assert_array_equal(cupy.asnumpy(out), cupy.asnumpy(found))


@pytest.mark.parametrize("sizes", EXPERTS, ids=str)
def test_jax_s_experts(jax: Any, sizes: dict[str, Any]) -> None:
    arguments = call(2, biases=True, **sizes)
    placed = {
        name: jax.numpy.asarray(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }
    for name in ("x", "w13", "w2", "w13_bias", "w2_bias"):
        placed[name] = placed[name].astype("bfloat16")
        arguments[name] = np.asarray(placed[name].astype("float32"))
    found = tessera.fused_experts(**placed)
    assert isinstance(found, jax.Array)
    assert found.device == placed["x"].device
    assert found.dtype == placed["x"].dtype
    assert_near_model(np.asarray(found.astype("float32")), "bfloat16", arguments)
