"""`fused_experts` on a GPU: values within the contract's bound, and the bits that it promises."""

from __future__ import annotations

from typing import Any

import pytest

import tessera
from cuda_experts_calls import (
    DEVICE,
    FORMS,
    TOKENS,
    apart,
    changed,
    experts_call,
    implementations,
    judged,
    kind_of_sums,
    of_tokens,
    output_by,
    output_dtype,
)
from fused_experts_calls import ACTIVATIONS

EVERY_FORM = pytest.mark.parametrize("form", FORMS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_keeps_the_contract(activation: str, dtype: str) -> None:
    for tokens in TOKENS:
        arguments = experts_call(
            1, tokens=tokens, activation=activation, dtype=dtype, biases=tokens % 8 == 0
        )
        assert judged(arguments, tessera.fused_experts(**arguments)) == []


@EVERY_FORM
@pytest.mark.parametrize("tokens", TOKENS)
def test_every_form_keeps_the_contract(form: str, tokens: int) -> None:
    arguments = FORMS[form](2, tokens=tokens)
    output = tessera.fused_experts(**arguments)
    assert output.dtype == output_dtype(arguments)
    assert output.is_contiguous()
    assert output.isfinite().all()
    assert judged(arguments, output) == []


def test_parameters_of_swigluoai_keep_the_contract() -> None:
    for activation in ("swigluoai", "swigluoai_uninterleave"):
        arguments = experts_call(3, activation=activation, biases=True) | {
            "swiglu_alpha": -0.75,
            "swiglu_beta": -2.5,
            "swiglu_limit": 0.5,
        }
        assert judged(arguments, tessera.fused_experts(**arguments)) == []


def test_tokens_without_experts_and_no_tokens() -> None:
    import torch

    arguments = experts_call(tokens=70)
    arguments["topk_ids"][10:20] = -1
    output = tessera.fused_experts(**arguments)
    bits = output.view(torch.int16)
    assert bits[10:20].eq(0).all()
    assert bits[:10].ne(0).any(dim=1).all()
    assert tessera.fused_experts(**experts_call(tokens=0)).shape == (0, 256)


@pytest.mark.parametrize("form", ["plain", "fp8_blocks"])
def test_a_map_without_entries_leaves_no_pair(form: str) -> None:
    import torch

    for tokens in TOKENS:
        arguments = FORMS[form](2, tokens=tokens)
        arguments["expert_map"] = torch.empty(0, dtype=torch.int32, device=DEVICE)
        assert not torch.count_nonzero(tessera.fused_experts(**arguments)), tokens


def test_an_output_whose_rows_lie_apart() -> None:
    import torch

    arguments = experts_call(4)
    expected = tessera.fused_experts(**arguments)
    for gap in (1, 8):
        memory = torch.full((60, 256 + gap), 77.0, dtype=torch.bfloat16, device=DEVICE)
        out = memory[:, :256]
        assert tessera.fused_experts(**arguments, out=out) is out
        assert torch.equal(out, expected)
        assert memory[:, 256:].eq(77).all()


@EVERY_FORM
def test_every_implementation_gives_the_same_bits(form: str) -> None:
    import torch

    for tokens in TOKENS:
        arguments = FORMS[form](5, tokens=tokens)
        expected: dict[str, Any] = {}
        for implementation in implementations():
            try:
                found = output_by(implementation, arguments)
            except NotImplementedError:
                continue
            first = expected.setdefault(kind_of_sums(implementation, arguments), found)
            assert torch.equal(found, first), f"{implementation}, {tokens} tokens"
        chosen = tessera.fused_experts(**arguments)
        assert any(torch.equal(chosen, one) for one in expected.values())


def test_kernels_for_90a_multiply_on_compute_capability_9_0() -> None:
    import torch

    has_90a = torch.cuda.get_device_capability() == (9, 0)
    for tokens in TOKENS:
        shape: dict[str, Any] = {"T": tokens, "H": 256, "E": 16, "F": 96, "k": 4}
        explained = tessera.explain(
            "fused_experts", **shape, activation="silu", dtype="bfloat16", device=DEVICE
        )
        (chosen,) = (one.name for one in explained if one.selected)
        of_90a = "cuda/swap_ab" if tokens <= 100 else "cuda/wgmma"
        assert chosen.startswith(of_90a if has_90a else "cuda/mma")
        refusals = [
            one.refusal for one in explained if one.name.startswith(("cuda/swap_ab", "cuda/wgmma"))
        ]
        assert len(refusals) == 2
        if not has_90a:
            assert all("compute capability 9.0" in refusal for refusal in refusals)


@pytest.mark.parametrize("form", ["plain", "fp8_blocks", "fp8_rows", "fp8_static"])
def test_tokens_of_a_large_call_have_the_bits_of_a_small_one(form: str) -> None:
    """In the large one each CTA takes several tiles, of several stages."""
    import torch

    arguments = FORMS[form](7, tokens=8192, hidden=2064, intermediate=528)
    output = tessera.fused_experts(**arguments)
    places = torch.linspace(0, 8191, 24, device=DEVICE).long()
    few = of_tokens(arguments, places)
    assert torch.equal(output[places], tessera.fused_experts(**few))
    assert judged(few, output[places]) == []


# By name: of the form, and with an F for which calls of up to 8 pairs have other tiles.
SIZES: dict[str, dict[str, int]] = {"own_sizes": {}, "larger_f": {"intermediate": 528}}


# Of the tokens of a call of 150, with 16 experts and 4 slots. On compute capability 9.0 the first
# two have tiles of their own.
SUBSETS = (40, 100, 3000)


def few_tokens(top_k: int) -> tuple[int, int, int]:
    """How many tokens a call may have: one, and so many that they have 8 or 16 pairs."""
    return 1, 8 // top_k, 16 // top_k


@pytest.mark.parametrize("sizes", SIZES)
@EVERY_FORM
def test_bits_of_a_token_do_not_depend_on_the_others(form: str, sizes: str) -> None:
    import torch

    arguments = FORMS[form](6, tokens=150, **SIZES[sizes])
    expected = tessera.fused_experts(**arguments)
    for count in few_tokens(arguments["topk_ids"].shape[1]):
        for first in range(0, 150, count):
            tokens = slice(first, first + count)
            found = tessera.fused_experts(**of_tokens(arguments, tokens))
            assert torch.equal(found, expected[tokens]), f"{count} tokens from {first} on"
    generator = torch.Generator().manual_seed(6)
    for count in (150, *SUBSETS):  # permuted, a part of them, or repeated
        tokens = torch.randperm(150, generator=generator)[:count]
        if count > 150:
            tokens = torch.randint(150, (count,), generator=generator)
        chosen = tokens.to(DEVICE)
        found = tessera.fused_experts(**of_tokens(arguments, chosen))
        assert torch.equal(found, expected[chosen]), f"{count} tokens"


def test_calls_whose_bits_are_compared_have_every_tiling_of_90a() -> None:
    import torch

    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")
    shape: dict[str, Any] = {"H": 256, "E": 16, "k": 4, "activation": "silu", "dtype": "bfloat16"}
    plans = {
        one.plan
        for intermediate in (96, SIZES["larger_f"]["intermediate"])
        for tokens in (*few_tokens(shape["k"]), 150, *SUBSETS)
        for one in tessera.explain(
            "fused_experts", **shape, T=tokens, F=intermediate, device=DEVICE
        )
        if one.selected
    }
    assert plans == {
        "8x128 tiles, of the gate-up product 8x32",
        "8x64 tiles",
        "16x128 tiles, of the gate-up product 16x64",
        "32x128 tiles",
        "48x256 tiles",
        "128x256 tiles",
    }


@pytest.mark.parametrize(
    "form", ["plain", "transposed", "elements_apart", "more_global_experts", "fp8_rows"]
)
@pytest.mark.parametrize("tokens", TOKENS)
def test_the_same_call_gives_the_same_bits_200_times(form: str, tokens: int) -> None:
    import torch

    arguments = FORMS[form](7, tokens=tokens)
    first = tessera.fused_experts(**arguments)
    for _ in range(199):
        assert torch.equal(tessera.fused_experts(**arguments), first)


@EVERY_FORM
def test_what_memory_held_before_does_not_matter(form: str) -> None:
    import torch

    for tokens in (33, 1000):
        arguments = FORMS[form](8, tokens=tokens)
        for implementation in implementations():
            try:
                expected = output_by(implementation, arguments, 0x00)
            except NotImplementedError:
                continue
            assert expected.isfinite().all()
            for fill in (0x7F, 0xFF):
                found = output_by(implementation, arguments, fill)
                assert torch.equal(found, expected), f"{implementation}, memory of {fill:#x}"


def test_memory_that_torch_hands_on_does_not_matter() -> None:
    import torch

    arguments = experts_call(9, tokens=1000)
    expected = tessera.fused_experts(**arguments)
    torch.cuda.synchronize()
    junk = [torch.full((2**n,), float("nan"), device=DEVICE) for n in range(8, 27)]
    del junk
    for _ in range(5):
        assert torch.equal(tessera.fused_experts(**arguments), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [40, 1000])
def test_values_that_no_pair_uses_do_not_spread(value: float, tokens: int) -> None:
    import torch

    arguments = experts_call(10, tokens=tokens, biases=True)
    ids = arguments["topk_ids"]
    ids[ids % 4 == 1] = 0  # no pair has expert 1, 5, 9 or 13
    ids[::7] = -1
    ids[1::7, 0] = 99
    expected = tessera.fused_experts(**arguments)
    arguments["x"][::7] = value
    for name in ("w13", "w2", "w13_bias", "w2_bias"):
        arguments[name][1::4] = value
    arguments["topk_weights"][(ids < 0) | (ids >= 16)] = value
    found = tessera.fused_experts(**arguments)
    assert found.isfinite().all()
    assert torch.equal(found, expected)
    # What lies between rows, too.
    found = tessera.fused_experts(**changed(arguments, lambda array: apart(array, 8)))
    assert torch.equal(found, expected)


def test_a_token_s_nan_stays_its_own() -> None:
    import torch

    arguments = experts_call(11, tokens=200)
    expected = tessera.fused_experts(**arguments)
    arguments["x"][17, 3] = float("nan")
    found = tessera.fused_experts(**arguments)
    assert found[17].isnan().all()
    others = torch.arange(200, device=DEVICE) != 17
    assert torch.equal(found[others], expected[others])


def test_float32_is_refused() -> None:
    import torch

    arguments = experts_call(dtype="float32")
    out = torch.full((60, 256), 77.0, device=DEVICE)
    with pytest.raises(
        NotImplementedError,
        match=r"^fused_experts: implementation: expected one in this build that can run on cuda:0, "
        r"got none; .*cuda/mma_\d+ multiplies float16 and bfloat16 alone",
    ):
        tessera.fused_experts(**arguments, out=out)
    assert out.eq(77).all()


@pytest.mark.parametrize("name", ["w13", "w2", "topk_weights", "topk_ids"])
def test_arrays_on_the_host_are_refused(name: str) -> None:
    arguments: dict[str, Any] = experts_call()
    arguments[name] = arguments[name].cpu()
    with pytest.raises(
        ValueError, match=rf"^fused_experts: {name}\.device: expected cuda:0, got cpu$"
    ):
        tessera.fused_experts(**arguments)
