"""`fused_experts` with weights in float8_e4m3fn: NumPy, torch, compiled, and a model in float64."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import tessera
from fused_experts_calls import Array

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

FP8 = torch.float8_e4m3fn


def blocked(weights: Any, halves: int = 1) -> tuple[Any, Any]:
    """Weights [E, rows, columns] in float8_e4m3fn, with scales of blocks that `halves` begin."""
    parts = [
        tessera.quantize_fp8(part, group=(128, 128))
        for expert in weights
        for part in expert.chunk(halves)
    ]
    values = torch.cat([part.values for part in parts]).reshape(weights.shape)
    scales = torch.cat([part.scales for part in parts])
    return values, scales.reshape(len(weights), -1, scales.shape[1])


def by_group(weights: Any, group: str) -> tuple[Any, Any]:
    """The same with a scale for each expert, [E], or row, [E, rows, 1]."""
    parts = [tessera.quantize_fp8(expert, group=group) for expert in weights]
    scales = torch.stack([part.scales for part in parts])
    values = torch.stack([part.values for part in parts])
    return values, scales[:, 0] if group == "tensor" else scales


def layer(
    kind: str = "blocks", *, dtype: Any = torch.bfloat16, tokens: int = 4, seed: int = 0
) -> dict[str, Any]:
    """A call with H = 160, F = 192: 192 and 160 are no multiples of 128."""
    torch.manual_seed(seed)
    hidden, size, experts, top_k = 160, 192, 3, 2
    w13 = torch.randn(experts, 2 * size, hidden) / 12
    w2 = torch.randn(experts, hidden, size) / 14
    if kind == "blocks":
        (w13, w13_scale), (w2, w2_scale) = blocked(w13, halves=2), blocked(w2)
    else:
        (w13, w13_scale), (w2, w2_scale) = by_group(w13, kind), by_group(w2, kind)
    return {
        "x": torch.randn(tokens, hidden).to(dtype),
        "w13": w13,
        "w2": w2,
        "topk_weights": torch.rand(tokens, top_k),
        "topk_ids": torch.randint(0, experts, (tokens, top_k), dtype=torch.int32),
        "w13_scale": w13_scale,
        "w2_scale": w2_scale,
    }


def dequantized(values: Any, scales: Any, halves: int = 1) -> Array:
    """Weights of one expert, or rows of vectors, times their scales, in float64."""
    elements, factors = values.double().numpy(), scales.double().numpy()
    if factors.ndim == 0 or factors.size == 1:
        return np.asarray(elements * factors)
    if factors.shape[-1] == 1 and factors.shape[0] == elements.shape[0]:
        return np.asarray(elements * factors)
    rows = np.vstack(
        [
            np.repeat(half, 128, axis=0)[: len(elements) // halves]
            for half in np.split(factors, halves)
        ]
    )
    return np.asarray(elements * np.repeat(rows, 128, axis=1)[:, : elements.shape[1]])


def model(call: dict[str, Any], group: str | int) -> Array:
    """The layer in float64, with each vector quantised by `quantize_fp8`."""
    halves = 2 if group == 128 else 1
    x = tessera.quantize_fp8(call["x"].float(), group=group)
    hidden = torch.from_numpy(
        np.vstack(
            [tokens_of(x.values[t : t + 1], x.scales[t : t + 1]) for t in range(len(call["x"]))]
        )
    )
    output = np.zeros(tuple(call["x"].shape))
    for t, slots in enumerate(call["topk_ids"].tolist()):
        for s, expert in enumerate(slots):
            w13 = dequantized(call["w13"][expert], call["w13_scale"][expert], halves)
            w2 = dequantized(call["w2"][expert], call["w2_scale"][expert])
            gate, up = np.split(w13 @ hidden[t].numpy(), 2)
            a = torch.from_numpy(gate / (1 + np.exp(-gate)) * up).float()[None]
            quantized = tessera.quantize_fp8(a, group=group)
            activated = tokens_of(quantized.values, quantized.scales)[0]
            output[t] += float(call["topk_weights"][t, s]) * (w2 @ activated)
    return output


def tokens_of(values: Any, scales: Any) -> Array:
    factors = np.repeat(scales.double().numpy(), 128 if scales.shape[1] > 1 else 10**4, axis=1)
    return np.asarray(values.double().numpy() * factors[:, : values.shape[1]])


@pytest.mark.parametrize(("kind", "group"), [("blocks", 128), ("row", "row"), ("tensor", "row")])
def test_values(kind: str, group: str | int) -> None:
    call = layer(kind, dtype=torch.float32)
    output = tessera.fused_experts(**call)
    assert output.dtype == torch.float32
    assert tessera.fused_experts_contract_violations(**call, output=output) == []
    assert tessera.fused_experts_bound_used(**call, output=output) <= 1
    # Where a quotient lies near a tie, the model takes another value for it: a step of a hundred.
    np.testing.assert_allclose(output.numpy(), model(call, group), atol=0.02)


class OnDevice:
    """An array that says it is on a CUDA device, and is copied from there."""

    def __init__(self, array: Array) -> None:
        self.get = lambda: array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError


def test_calls_on_a_device_have_a_wider_bound() -> None:
    """The checker reads copies on the host, but uses the bound of the device where the call ran."""
    call = layer(dtype=torch.float32)
    output = tessera.fused_experts(**call)
    output += 1e-3 * output.abs().max()
    (violation,) = tessera.fused_experts_contract_violations(**call, output=output)
    assert violation.rule == "error_bound"
    on_host = tessera.fused_experts_bound_used(**call, output=output)
    assert on_host > 1
    there = OnDevice(output.numpy())
    assert tessera.fused_experts_contract_violations(**call, output=there) == []
    assert tessera.fused_experts_bound_used(**call, output=there) < 1


@pytest.mark.parametrize("kind", ["blocks", "row", "tensor"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_x_in_fp8_gives_the_same_bits(kind: str, dtype: Any) -> None:
    call = layer(kind, dtype=dtype)
    expected = tessera.fused_experts(**call)
    group = 128 if kind == "blocks" else "row"
    call["x"], call["x_scale"] = tessera.quantize_fp8(call["x"], group=group)
    out = torch.empty(expected.shape, dtype=dtype)
    assert tessera.fused_experts(**call, out=out) is out
    assert torch.equal(out, expected)
    made = tessera.fused_experts(**call)
    assert made.dtype == torch.bfloat16
    assert tessera.fused_experts_contract_violations(**call, output=made) == []


def test_static_scales() -> None:
    call = layer("tensor", dtype=torch.float32)
    scales = {"x_scale": torch.tensor([0.01]), "intermediate_scale": torch.tensor([0.002])}
    output = tessera.fused_experts(**call, **scales)
    assert tessera.fused_experts_contract_violations(**call, **scales, output=output) == []
    values = tessera.quantize_fp8(call["x"], group="tensor", scale=scales["x_scale"]).values
    again = tessera.fused_experts(**call | {"x": values}, **scales, out=torch.empty_like(output))
    assert torch.equal(again, output)
    # vLLM has such scales without an axis.
    single = {name: scale[0] for name, scale in scales.items()}
    assert torch.equal(tessera.fused_experts(**call, **single), output)


def test_ue8m0() -> None:
    call = layer(dtype=torch.float32)
    output = tessera.fused_experts(**call, use_ue8m0=True)
    assert tessera.fused_experts_contract_violations(**call, use_ue8m0=True, output=output) == []
    (violation,) = tessera.fused_experts_contract_violations(**call, output=output)
    assert violation.rule == "error_bound"


def test_numpy_holds_bits() -> None:
    call = layer(dtype=torch.float32)
    expected = tessera.fused_experts(**call).numpy()

    def bits(array: Any) -> Array:
        held: Array = (array.view(torch.uint8) if array.dtype == FP8 else array).numpy()
        return held

    arrays = {name: bits(array) for name, array in call.items()}
    assert np.array_equal(tessera.fused_experts(**arrays), expected)
    arrays["x"], arrays["x_scale"] = tessera.quantize_fp8(arrays["x"], group=128)
    assert arrays["x"].dtype == np.uint8
    output = tessera.fused_experts(**arrays)
    assert output.dtype == np.float32
    assert np.array_equal(output, expected)
    assert tessera.fused_experts_contract_violations(**arrays, output=output) == []


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("is_given", [False, True])
def test_compiled(is_given: bool, dynamic: bool) -> None:
    def made(seed: int, tokens: int) -> dict[str, Any]:
        call = layer(seed=seed, tokens=tokens)
        if is_given:
            call["x"], call["x_scale"] = tessera.quantize_fp8(call["x"], group=128)
        return call

    names = tuple(made(0, 4))

    def run(*arrays: Any) -> Any:
        return tessera.fused_experts(**dict(zip(names, arrays, strict=True)))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for tokens in (4, 7):
        call = made(1, tokens)
        output = compiled(*call.values())
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, tessera.fused_experts(**call))


def test_fake_tensors_have_the_type_of_the_output() -> None:
    call = layer()
    call["x"], call["x_scale"] = tessera.quantize_fp8(call["x"], group=128)
    importlib.import_module("tessera.torch_ops")
    # Others of its checks multiply their inputs, which torch cannot in this type.
    op, checks = torch.ops.tessera.fused_experts.default, ("test_faketensor",)
    torch.library.opcheck(op, (), call, test_utils=checks)
    meta = {name: array.to("meta") for name, array in call.items()}
    output = torch.ops.tessera.fused_experts(**meta)
    assert (output.dtype, output.shape) == (torch.bfloat16, call["x"].shape)


def test_a_gradient_of_a_scale_is_refused() -> None:
    call = layer()
    call["w2_scale"].requires_grad_(True)
    with pytest.raises(ValueError, match="fused_experts: w2_scale: "):
        tessera.fused_experts(**call)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w13_scale": None}, "w13_scale: expected a float32 array where w13 is float8_e4m3fn"),
        (
            {"w13_scale": torch.ones(3, 3, 2)},
            r"w13_scale.shape: expected \[3, 4, 2\] for scales of blocks, got \[3, 3, 2\]",
        ),
        (
            {"w2_scale": torch.ones(3)},
            r"w2_scale.shape: expected \[3, 2, 2\], as w13 has scales of blocks, got \[3\]",
        ),
        ({"x_scale": torch.ones(1)}, "x_scale: expected none where x is not float8_e4m3fn"),
        (
            {"w13": torch.ones(3, 384, 160, dtype=torch.bfloat16)},
            "w2.dtype: expected bfloat16, as w13 has, got float8_e4m3fn",
        ),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    out = torch.full((4, 160), 7.0, dtype=torch.bfloat16)
    with pytest.raises((TypeError, ValueError), match=f"^fused_experts: {message}"):
        tessera.fused_experts(**layer() | change, out=out)
    assert bool((out == 7).all())


def test_scales_without_fp8_are_refused() -> None:
    call = layer()
    call["w13"], call["w2"] = call["w13"].bfloat16(), call["w2"].bfloat16()
    with pytest.raises(ValueError, match="w13_scale: expected none where w13 is not float8_e4m3fn"):
        tessera.fused_experts(**call)
    del call["w13_scale"], call["w2_scale"]
    with pytest.raises(ValueError, match="use_ue8m0: expected false where w13 is not"):
        tessera.fused_experts(**call, use_ue8m0=True)


@pytest.mark.parametrize("kind", ["blocks", "row"])
@pytest.mark.parametrize("x_in_fp8", [False, True])
def test_arrays_of_ml_dtypes(kind: str, x_in_fp8: bool) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    call = layer(kind, dtype=torch.float32)
    if x_in_fp8:
        call["x"], call["x_scale"] = tessera.quantize_fp8(
            call["x"], group=128 if kind == "blocks" else "row"
        )
    bits = {
        name: (value.view(torch.uint8) if value.dtype == FP8 else value).numpy()
        for name, value in call.items()
    }
    arrays = {
        name: value.view(ml_dtypes.float8_e4m3fn) if value.dtype == np.uint8 else value
        for name, value in bits.items()
    }
    expected = tessera.fused_experts(**bits)
    found = tessera.fused_experts(**arrays)
    assert found.dtype == np.float32 and np.array_equal(found, expected)
    assert np.array_equal(tessera.fused_experts(**bits | {"w2": arrays["w2"]}), expected)
    out = np.empty_like(expected)
    assert tessera.fused_experts(**arrays, out=out) is out
    assert np.array_equal(out, expected)
    for name in ("w13", "w2"):
        arrays[name].flags.writeable = False
    assert np.array_equal(tessera.fused_experts(**arrays), expected)
    assert tessera.fused_experts_contract_violations(**arrays, output=found) == []
    # Scales are no such arrays, and e5m2 is another type.
    known = "float16, bfloat16, float32 or float8_e4m3fn"
    for name, other, expected in (
        ("w2_scale", "float8_e4m3fn", "float32"),
        ("w2", "float8_e5m2", known),
    ):
        wrong = arrays[name].astype(getattr(ml_dtypes, other))
        message = f"^fused_experts: {name}.dtype: expected {expected}, got {other}$"
        with pytest.raises(TypeError, match=message):
            tessera.fused_experts(**arrays | {name: wrong})
