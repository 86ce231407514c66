"""The models of bench/engine: their configurations, their random weights, their kernels."""

# ruff: noqa: F811, for the imported fixture

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench_modules import BENCH, programs  # noqa: F401, it is a fixture

torch = pytest.importorskip("torch")
BLOCK = 128


@pytest.fixture
def models(programs: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the models."""
    monkeypatch.syspath_prepend(str(BENCH / "engine"))
    return programs("engine_models")


def experts() -> Any:
    """A module with the parameters of vLLM's model, small, and none of them set."""

    def parameter(*shape: int, dtype: Any = torch.bfloat16) -> Any:
        return torch.nn.Parameter(torch.zeros(shape).to(dtype), requires_grad=False)

    def module(**parameters: Any) -> Any:
        made = torch.nn.Module()
        for name, one in parameters.items():
            made.register_parameter(name, one)
        return made

    made = torch.nn.Module()
    made.embed_tokens = module(weight=parameter(50, 2 * BLOCK))
    made.norm = module(weight=parameter(2 * BLOCK))
    made.experts = module(
        w13_weight=parameter(3, 2 * BLOCK, 4 * BLOCK, dtype=torch.float8_e4m3fn),
        w2_weight=parameter(3, 4 * BLOCK, BLOCK, dtype=torch.float8_e4m3fn),
        w13_weight_scale_inv=parameter(3, 2, 4, dtype=torch.float32),
        w2_weight_scale_inv=parameter(3, 4, 1, dtype=torch.float32),
    )
    made.lm_head = module(weight=parameter(50, 2 * BLOCK))
    return made


def dequantised(weight: Any, scales: Any) -> Any:
    blocks = scales.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    return weight.to(torch.float32) * blocks


def test_fp8_weights_are_as_large_as_those_of_an_unquantised_model(models: Any) -> None:
    module = experts()
    storage = [one.data_ptr() for one in module.parameters()]
    models.initialise(module)
    # Graphs that vLLM has captured read where the weights were.
    assert [one.data_ptr() for one in module.parameters()] == storage
    assert (module.norm.weight == 1).all()
    assert module.embed_tokens.weight.float().std().item() == pytest.approx(1, rel=0.05)
    assert module.lm_head.weight.float().std().item() == pytest.approx(256**-0.5, rel=0.05)
    for name in ("w13_weight", "w2_weight"):
        weight = getattr(module.experts, name)
        scales = getattr(module.experts, f"{name}_scale_inv")
        values = dequantised(weight, scales)
        assert values.std().item() == pytest.approx(weight.shape[-1] ** -0.5, rel=0.05)
        assert abs(values.mean().item()) < 0.02 * values.std().item()
        stored = weight.to(torch.float32).abs()
        assert stored.isfinite().all()
        assert 400 < stored.max() <= 448
        assert scales.unique().numel() == scales.numel()
        assert not torch.equal(stored[0], stored[1])


def test_weights_are_the_same_in_every_process(models: Any) -> None:
    first, second = experts(), experts()
    torch.manual_seed(1)
    models.initialise(first)
    torch.manual_seed(2)
    models.initialise(second)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one.to(torch.float32), other.to(torch.float32))


def test_only_experts_are_quantised(models: Any, tmp_path: Path) -> None:
    models.write_config(tmp_path, "Qwen3-30B-A3B-FP8", 2)
    config = json.loads((tmp_path / "config.json").read_text())
    quantization = config.pop("quantization_config")
    names = [
        "mlp.gate", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    ]  # fmt: skip
    assert quantization.pop("modules_to_not_convert") == [
        "lm_head",
        *(f"model.layers.0.{name}" for name in names),
        *(f"model.layers.1.{name}" for name in names),
    ]
    assert quantization == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    # All else is that of the model in bfloat16.
    models.write_config(tmp_path, "Qwen3-30B-A3B", 2)
    assert json.loads((tmp_path / "config.json").read_text()) == config
    assert config["num_hidden_layers"] == 2
    assert models.MODELS["Qwen3-30B-A3B-FP8"].sizes(2)["quantization"] == "block"
    assert models.MODELS["Qwen3-30B-A3B"].sizes(2)["quantization"] == "none"


def test_engines_do_without_deep_gemm(models: Any) -> None:
    assert models.environment_of("vllm", {})["VLLM_USE_DEEP_GEMM"] == "0"


def test_roles_of_kernels(programs: Callable[[str], Any], models: Any) -> None:
    roles = programs("kernel_roles")
    names = {
        "fused_moe_kernel": "experts",
        "void tessera::cuda::(anonymous namespace)::wgmma_product<true>(tessera::A)": "experts",
        "void tessera::cuda::(anonymous namespace)::swap_ab_layer<4>(tessera::A)": "experts",
        "tessera::cuda::(anonymous namespace)::find_experts(tessera::cuda::PairsArgs)": "experts",
        "void tessera::cuda::(anonymous namespace)::combine<4>(tessera::A)": "combine",
        "void tessera::cuda::(anonymous namespace)::few_kernel<1>(tessera::A)": "align",
        "void tessera::cuda::(anonymous namespace)::select_experts_warps<1>(A)": "router",
        "void vllm::moe::topkGating<8, 128, 4>(float const*)": "router",
        "void vllm::moe::moe_align_block_size_kernel<int>(int*)": "align",
        "void vllm::moe::count_and_sort_expert_tokens_kernel<int>(int*)": "align",
        "void vllm::moe::moe_lora_align_block_size_kernel<int>(int*)": "align",
        "void vllm::moe::moeSigmoid<256, float>(float const*, bool const*)": "router",
        "void vllm::moe::moe_sum_kernel<c10::BFloat16, 8>(float*)": "combine",
        "void at::native::reduce_kernel<128, 4, sum_functor<c10::BFloat16>>(A)": "combine",
        "void vllm::act_and_mul_kernel<c10::BFloat16>(float*)": "activation",
        "void vllm::silu_and_mul_per_block_quant_kernel<c10::BFloat16>(A)": "activation",
        "void per_token_group_quant_8bit_kernel<c10::BFloat16>(A)": "quantization",
        "void tessera::cuda::(anonymous namespace)::group_kernel<__nv_bfloat16, 8>("
        "tessera::cuda::QuantizeFp8KernelArgs)": "quantization",
        "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::Fwd>>(A)": "attention",
        "void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16>(A)": "attention",
        "nvjet_tst_128x64_64x8_2x1_v_bz_TNT": "rest",
        "Memcpy DtoH (Device -> Pinned)": "copies",
    }
    assert {name: roles.role_of(name) for name in names} == names
    found = roles.summary([roles.Kernel(name, 2.0, 3) for name in names], shown=1)
    assert found["us"] == 2 * len(names)
    assert found["roles_us"]["experts"] == 8.0
    assert len(found["kernels"]) == 1
