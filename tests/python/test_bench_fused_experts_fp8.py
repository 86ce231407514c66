"""`tessera bench --op fused_experts --quantization`: weights in fp8, on the CPU and as on a GPU."""

# ruff: noqa: F811, for the imported fixtures

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tessera
from fused_experts_gpu import HOST_OP, TINY, engines, gpu, no_engines  # noqa: F401, fixtures
from tessera.cli.main import main
from tessera.tools.bench import driver
from tessera.tools.bench.driver import ContractBrokenError, Request, measure
from tessera.tools.bench.methods import Effort
from tessera.tools.bench.ops import OPS, fused_experts, fused_experts_cuda
from tessera.tools.bench.ops.fused_experts import eager
from tessera.tools.bench.ops.fused_experts_fp8 import QUANTIZATIONS, fp8_weights
from tessera.tools.bench.ops.fused_experts_inputs import Accuracy, Shape, input_sets, reference

torch = pytest.importorskip("torch", reason="torch is not installed")

KINDS = QUANTIZATIONS[1:]
HOST = fused_experts.OP.quantized
GPU = HOST_OP.quantized
assert HOST is not None
assert GPU is not None


def in_fp8(shape: Shape, kind: str = "block") -> Shape:
    return dataclasses.replace(shape, quantization=kind)


def measured(*shapes: Shape, **options: Any) -> Any:
    effort = Effort(repetitions=1, min_seconds=0.0)
    return measure(Request("cpu", shapes, ["call"], effort=effort, op=HOST, **options))


def measured_on_gpu(*shapes: Shape, **options: Any) -> Any:
    return measure(Request("cuda", shapes, GPU.methods, commit="abc", op=GPU, **options))


# 192 is no multiple of 128, so that gate and up rows have blocks of different sizes.
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_near_those_before_and_have_the_scales_of_the_op(kind: str) -> None:
    weights = fp8_weights(3, 160, 192, kind, "cpu", 0)
    shapes = {
        "block": ((3, 4, 2), (3, 2, 2)),
        "row": ((3, 384, 1), (3, 160, 1)),
        "tensor": ((3,), (3,)),
    }
    assert (weights.w13.scales.shape, weights.w2.scales.shape) == shapes[kind]
    for matrices in weights:
        assert matrices.values.dtype == torch.float8_e4m3fn
        for expert in range(3):
            before = matrices.unquantized[expert].float()
            off = (matrices.dequantized(expert) - before).abs()
            # Half a step of three bits, or of the smallest number.
            least = float(matrices.scales[expert].max()) * 2**-10
            assert bool((off <= 1.01 * (before.abs() / 16).clamp(least)).all())
    scales = weights.w13.scales.flatten()
    assert float(scales.max() / scales.min()) > 1.2


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_computes_what_tessera_computes(kind: str) -> None:
    shape = Shape("tiny", 4, 2, 160, 192, "bfloat16", 9, quantization=kind)
    weights = fp8_weights(4, 160, 192, kind, "cpu", 0)
    (inputs,) = input_sets(shape, "cpu", 0, 1, None)
    assert inputs.w13 is weights.w13.values
    ours = tessera.fused_experts(*inputs, **weights.scales).float()
    theirs = eager(inputs, weights.dequantized).float()
    expected = reference(inputs, torch.arange(9), weights.dequantized)
    assert float((theirs - expected).norm() / expected.norm()) < 0.01
    # Quantised x and intermediate.
    assert 0.01 < float((ours - expected).norm() / expected.norm()) < 0.08


def test_errors_are_of_the_layer_before_quantisation() -> None:
    shape = Shape("tiny", 4, 2, 160, 192, "bfloat16", 40, quantization="block")
    weights = fp8_weights(4, 160, 192, "block", "cpu", 0)
    (inputs,) = input_sets(shape, "cpu", 0, 1, None)
    accuracy = Accuracy(inputs, weights, 0)
    x = accuracy.inputs.x.float() / inputs.x.float()
    factors = x.nanmean(0)
    assert sorted(factors[factors > 2].round().int().tolist()) == [20, 30, 40, 50]
    tokens = torch.arange(40)
    right = reference(accuracy.inputs, tokens, weights.unquantized, torch.float64)
    assert accuracy.error(right) < 1e-12
    assert accuracy.error(right * 1.25) == pytest.approx(0.25)
    assert 0.02 < accuracy.error(eager(accuracy.inputs, weights.dequantized)) < 0.07


def test_shapes_are_those_with_x_in_bfloat16() -> None:
    shapes = HOST.usual_shapes
    assert shapes == [one for one in fused_experts.SHAPES if one.dtype == "bfloat16"]
    assert in_fp8(shapes[0]).name == "Qwen3-30B-A3B fp8 block/1"
    assert in_fp8(dataclasses.replace(shapes[0], skew="zipf"), "row").name.endswith(" row/1/zipf")
    assert GPU.presets == HOST_OP.presets


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_cpu(kind: str) -> None:
    shapes = [in_fp8(shape, kind) for shape in TINY[:2]]
    document = measured(*shapes)
    reasons = {name: one["unavailable"] for name, one in document["contenders"].items()}
    assert reasons.pop("grouped_mm") == "takes no weights in fp8"
    assert reasons == dict.fromkeys(("tessera", "tessera/1", "eager", "read", "multiply_adds"), "")
    for row, shape in zip(document["rows"], shapes, strict=True):
        assert row.items() >= dataclasses.asdict(shape).items()
        assert set(row["us"]) == set(reasons)
        assert list(row["errors"]) == ["tessera", "eager"]
        assert all(0.01 < error < 0.15 for error in row["errors"].values())
        assert row["ratios"].keys() >= {"Tessera / best peer", "Tessera / floor"}


def test_deep_gemm_multiplies_rows_and_weights_with_scales_of_blocks(
    gpu: SimpleNamespace, engines: Callable[[str], Any]
) -> None:
    shape = Shape("wide", 4, 2, 256, 128, "bfloat16", 1024)
    document = measured_on_gpu(in_fp8(shape), in_fp8(shape, "row"), peers=["deep_gemm"])
    blocks, rows = document["rows"]
    assert set(blocks["us"]) == {"tessera", "weights", "dense", "deep_gemm"}
    assert not blocks["refusals"]
    assert rows["refusals"] == {"deep_gemm": "multiplies fp8 with scales of blocks alone"}
    engines("vllm.third_party.deep_gemm").factor = 1.2
    (wrong,) = measured_on_gpu(in_fp8(shape), peers=["deep_gemm"])["rows"]
    assert wrong["refusals"]["deep_gemm"].startswith("expected at most 1e-01 off ")


def test_wrong_outputs_of_tessera_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        scale = options["w2_scale"]
        return right(*arguments, **options | {"w2_scale": scale.flip(0).contiguous()})

    right = tessera.fused_experts
    monkeypatch.setattr(tessera, "fused_experts", wrong)
    message = r"^tessera breaks the contract on tiny fp8 tensor/5"
    with pytest.raises(ContractBrokenError, match=message):
        measured(in_fp8(TINY[1], "tensor"))


def test_every_contender_on_a_gpu_is_checked_and_timed(
    gpu: SimpleNamespace, engines: Callable[[str], Any]
) -> None:
    gpu.us_of = {"tessera": 2000.0, "vllm": 4000.0, "dense": 500.0, "eager": 8000.0}
    document = measured_on_gpu(*map(in_fp8, TINY))
    kinds = {name: one["kind"] for name, one in document["contenders"].items()}
    assert list(kinds) == [
        *("tessera", "weights", "dense", "eager", "vllm", "grouped_mm", "flashinfer", "deep_gemm")
    ]
    reasons = {name: one["unavailable"] for name, one in document["contenders"].items()}
    assert {name: why for name, why in reasons.items() if why} == {
        "grouped_mm": "takes no weights in fp8",
        "flashinfer": "its layer in the CuTe DSL takes weights in bfloat16 alone",
    }
    assert document["contenders"]["eager"]["version"] == torch.__version__
    assert document["peers_within"] == 0.1
    most = document["rows"][-1]
    assert most["shape"] == "tiny fp8 block/4096"
    # All eight experts, each 3 * 64 * 32 weights of a byte, and three scales, at 1 TB/s.
    weights = pytest.approx(8 * (3 * 64 * 32 + 3 * 4) / 1e6)
    assert most["us"]["weights"] == {"burst": weights, "sustained": weights}
    # Tessera's graph of 4096 tokens has one call, as the peers' have.
    assert most["ratios"]["Tessera / best peer"] == 0.5
    assert most["ratios"]["Tessera / vllm"] == 0.5
    assert most["ratios"]["Tessera / eager"] == 0.25
    assert most["ratios"]["Tessera / floor"] == 4.0
    for row in document["rows"]:
        assert set(row["us"]) == {"tessera", "weights", "dense", "eager", "vllm"}
        assert not any(row[key] for key in ("failures", "violations"))
        why = "counts blocks over gate and up: needs an F of a multiple of 128"
        assert row["refusals"] == {"deep_gemm": why}
        assert list(row["errors"]) == ["tessera", "eager", "vllm"]
        assert all(0.01 < error < 0.15 for error in row["errors"].values())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("block", {"block_shape": [128, 128]}),
        ("row", {"per_act_token_quant": True, "per_out_ch_quant": True}),
        ("tensor", {}),
    ],
)
def test_vllm_gets_the_scales(
    kind: str, options: dict[str, Any], gpu: SimpleNamespace, engines: Callable[[str], Any]
) -> None:
    module = engines("vllm.model_executor.layers.fused_moe.fused_moe")
    (row,) = measured_on_gpu(in_fp8(TINY[2], kind), peers=["vllm"])["rows"]
    assert "vllm" in row["us"], row["refusals"]
    given = module.quantized[0]
    scales = {"w1_scale": given["w1_scale"], "w2_scale": given["w2_scale"]}
    by_row = dict.fromkeys(("per_act_token_quant", "per_out_ch_quant"), False)
    assert given == {**by_row, **options, **scales}
    assert all(each.dtype == torch.float32 for each in scales.values())


@pytest.mark.parametrize("kind", KINDS)
def test_older_versions_of_vllm_take_scales_as_arguments(
    kind: str,
    gpu: SimpleNamespace,
    engines: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = engines("vllm.model_executor.layers.fused_moe.fused_moe")
    given = {}

    def older(
        *arrays: Any,
        use_fp8_w8a8: bool = False,
        per_channel_quant: bool = False,
        w1_scale: Any = None,
        w2_scale: Any = None,
        block_shape: Any = None,
    ) -> Any:
        given.update(fp8=use_fp8_w8a8, row=per_channel_quant, blocks=block_shape)
        return right(*arrays, quant_config={"w1_scale": w1_scale, "w2_scale": w2_scale})

    right = module.fused_experts
    monkeypatch.setattr(module, "fused_experts", older)
    (row,) = measured_on_gpu(in_fp8(TINY[1], kind), peers=["vllm"])["rows"]
    assert "vllm" in row["us"], row["refusals"]
    blocks = [128, 128] if kind == "block" else None
    assert given == {"fp8": True, "row": kind == "row", "blocks": blocks}


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_with_other_scales_is_not_timed(
    kind: str,
    gpu: SimpleNamespace,
    engines: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(*arrays: Any, quant_config: Any) -> Any:
        scale = quant_config["w1_scale"].flip(0)
        return right(*arrays, quant_config=quant_config | {"w1_scale": scale})

    module = engines("vllm.model_executor.layers.fused_moe.fused_moe")
    right = module.fused_experts
    monkeypatch.setattr(module, "fused_experts", wrong)
    (row,) = measured_on_gpu(in_fp8(TINY[2], kind))["rows"]
    assert row["refusals"]["vllm"].startswith("expected at most 1e-01 off a float32 reference, got")
    assert list(row["errors"]) == ["tessera", "eager"]


@pytest.mark.parametrize(("capability", "is_fp8"), [((8, 0), False), ((8, 9), True)])
def test_dense_products_are_in_fp8_where_the_gpu_has_them(
    capability: tuple[int, int],
    is_fp8: bool,
    gpu: SimpleNamespace,
    no_engines: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def multiply(values: Any, weights: Any, *scales: Any, **options: Any) -> Any:
        seen.append((values.shape, values.dtype, weights.shape, weights.dtype))
        return product(values, weights, *scales, **options)

    product = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", multiply)
    gpu.capability = capability
    (row,) = measured_on_gpu(in_fp8(TINY[2]), peers=[])["rows"]
    assert "dense" in row["us"], row["refusals"]
    fp8 = torch.float8_e4m3fn
    # Of 1024 tokens with two experts each.
    both = [((2048, 64), fp8, (64, 64), fp8), ((2048, 32), fp8, (32, 64), fp8)]
    assert [one for one in both if one in seen] == (both if is_fp8 else [])


def test_the_loop_on_a_gpu_takes_experts_from_the_host(gpu: SimpleNamespace) -> None:
    problem = GPU.make_problem(in_fp8(TINY[1]), "cuda", 0)
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(problem.weights),
            "dequantized",
            lambda weights, expert: seen.append(expert) or weights.unquantized(expert),
        )
        run = fused_experts_cuda._torch_eager(problem)
        run(problem.sets[0])
    assert seen
    assert all(type(expert) is int for expert in seen)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs the command with tiny shapes on the CPU, and gives its results."""
    presets = {"quick": TINY[:2]}
    quantized = dataclasses.replace(HOST, presets=presets)
    op = dataclasses.replace(OPS[HOST.name], presets=presets, quantized=quantized)
    monkeypatch.setitem(OPS, op.name, op)

    def run(*options: str) -> Any:
        file = tmp_path / "experts.json"
        words = ["--op", op.name, "--device", "cpu", "--tokens", "1", "--json", str(file)]
        assert main(["bench", *words, *options]) == 0
        return json.loads(file.read_text())

    return run


def test_the_command_prints_and_writes_errors(
    command: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = command("--quantization", "row")["rows"]
    assert (row["shape"], row["quantization"]) == ("tiny fp8 row/1", "row")
    text = capsys.readouterr().out
    (ours,) = re.findall(r"^tiny fp8 row/1 +(0\.\d{4}) +0\.\d{4}$", text, re.MULTILINE)
    assert ours == f"{row['errors']['tessera']:.4f}"
    assert "\nerror: norm of the difference from the layer in float64 with the weights " in text
    assert "grouped_mm: unavailable: takes no weights in fp8\n" in text


@pytest.mark.parametrize("options", [[], ["--quantization", "none"]])
def test_without_quantisation_nothing_is_said_about_errors(
    options: list[str], command: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    document = command("--peers", "none", *options)
    (row,) = document["rows"]
    assert (row["shape"], row["quantization"]) == ("tiny bfloat16/1", "none")
    assert "errors" not in row
    assert "error" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--quantization", "block"],
            "--quantization: expected --op fused_experts beside it, got --op align_block_size",
        ),
        (
            ["--preset", "report", "--quantization", "row"],
            "--quantization: expected --op fused_experts beside it, got --op align_block_size",
        ),
        (
            ["--op", "quantize_fp8", "--quantization", "none"],
            "--quantization: expected --op fused_experts beside it, got --op quantize_fp8",
        ),
    ],
)
def test_other_ops_have_no_quantisation(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--device", "cpu", *options]) == 2
    assert capsys.readouterr().err == f"tessera bench: {message}\n"


def test_on_a_gpu_the_command_takes_it_too(
    gpu: SimpleNamespace, no_engines: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    both = [SimpleNamespace(name=name, available=True, detail="") for name in ("cpu", "cuda")]
    monkeypatch.setattr(tessera, "backends", lambda: both)
    tiny = {"table": TINY[:2], "anchors": TINY[1:2]}
    op = dataclasses.replace(
        HOST_OP, presets=tiny, quantized=dataclasses.replace(GPU, presets=tiny)
    )
    monkeypatch.setitem(OPS, op.name, dataclasses.replace(OPS[op.name], cuda=op))
    about = {"commit": "", "gpu": "a GPU", "machine": ""}
    monkeypatch.setattr(driver, "description", lambda device, commit: about)
    file = tmp_path / "a.json"
    words = ["--op", op.name, "--device", "cuda", "--quantization", "tensor", "--json", str(file)]
    assert main(["bench", *words, "--preset", "anchors"]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["shape"] == "tiny fp8 tensor/5"
    assert set(row["errors"]) == {"tessera", "eager"}
