"""The file of SGLang's expert computation in real versions: its parameters, and its callers.

Takes the folders of test_sglang_real.py.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tessera.sglang  # noqa: E402
from engine_packages import STANDINS, Nothing, provide, signatures, sites  # noqa: E402
from experts_calls import close, layer, reference  # noqa: E402
from tessera.sglang import experts  # noqa: E402

LAYERS = "sglang.srt.layers.moe"


def file_of(folder: Path) -> Path:
    """The file that has the function."""
    for name in experts.MODULES:
        path = folder / Path(*name.split(".")).with_suffix(".py")
        if path.exists():
            return path
    pytest.skip("this SGLang has its function in another file")


@pytest.mark.parametrize("site", sites("sglang"))
def test_parameters_are_known(site: Path) -> None:
    found = signatures(file_of(site))[experts.NAME]
    assert experts.parameters_of(list(found)) == tuple(found)
    known = [name for names in experts.GENERATIONS.values() for name in names]
    assert sorted(known) == sorted(set(known))
    served = inspect.signature(experts.fused_experts_impl).parameters
    for name, default in found.items():
        if name in served and default is not None:
            assert repr(served[name].default) == default.replace('"', "'")


def test_standins_have_the_parameters_of_a_generation() -> None:
    """Those of all versions up to theirs, with SGLang's defaults for what is not served."""
    names = [name for names in experts.GENERATIONS.values() for name in names]
    for version in ("0.5.5", "0.5.23"):
        found = signatures(file_of(STANDINS / f"sglang-{version}"))[experts.NAME]
        last = list(experts.GENERATIONS).index(version)
        expected = [n for names in list(experts.GENERATIONS.values())[: last + 1] for n in names]
        assert sorted(found) == sorted(expected)
        assert set(found) <= set(names)


@pytest.mark.parametrize("site", sites("sglang"))
def test_standin_has_the_parameters_of_its_version(site: Path) -> None:
    found = list(signatures(file_of(site))[experts.NAME])
    standins = [
        list(signatures(file_of(folder))[experts.NAME]) for folder in STANDINS.glob("sglang-*")
    ]
    if len(found) not in map(len, standins):
        pytest.skip("no stand-in is of this generation")
    assert found in standins


@pytest.mark.parametrize("site", sites("sglang"))
def test_real_callers_get_to_tessera(
    site: Path, use_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang's functions behind its ops, whose own kernels cannot run here."""
    use_engine(STANDINS / "sglang-0.5.5")  # for its sgl_kernel
    path = file_of(site)
    name = ".".join(path.relative_to(site).with_suffix("").parts)
    packages = [f"{LAYERS}.moe_runner", name.rpartition(".")[0]]
    neighbours = [f"{packages[1]}.{module}" for module in (
        "fused_moe_triton_config", "fused_moe_triton_kernels", "moe_align_block_size"
    )]  # fmt: skip
    provide(
        monkeypatch,
        site,
        {
            "sglang": {"__version__": "0"},
            "sglang.srt": {},
            "sglang.srt.layers": {},
            LAYERS: {},
            packages[0]: {"MoeRunnerConfig": SimpleNamespace},
            packages[1]: {},
        },
        {
            **{module: {} for module in neighbours},
            "sglang.kernels": {},
            "sglang.kernels.jit": {},
            "sglang.kernels.jit.utils": {},
            "sglang.kernels.ops": {},
            "sglang.kernels.ops.moe": {},
            "sglang.kernels.ops.moe.fused_moe_triton_kernels": {},
            "sglang.srt.batch_invariant_ops": {},
            "sglang.srt.distributed": {},
            "sglang.srt.distributed.device_communicators": {},
            experts._SYMMETRIC_MEMORY: {},
            "sglang.srt.environ": {"envs": None},
            "sglang.srt.layers.dp_attention": {},
            "sglang.srt.layers.quantization": {},
            "sglang.srt.layers.quantization.fp8_kernel": {},
            "sglang.srt.layers.quantization.int8_kernel": {},
            f"{LAYERS}.topk": {},
            f"{LAYERS}.utils": {},
            "sglang.srt.runtime_context": {},
            "sglang.srt.server_args": {},
            "sglang.srt.utils": {},
            "sglang.srt.utils.custom_op": {"register_custom_op": lambda **_: lambda f: f},
            "triton": {"jit": lambda function: function, "language": Nothing("triton.language")},
            "triton.language": {},
        },
    )
    monkeypatch.setattr(torch, "compile", lambda function: function)  # which asks the real triton
    module = importlib.import_module(name)
    assert f"{name}.{experts.NAME}" in tessera.sglang.install()
    call = layer()
    expected = reference(call)
    options = {"activation": "silu", "w1_scale": None, "routed_scaling_factor": None}
    close(module.outplace_fused_experts(*call.values(), **options), expected)
    given = call["hidden_states"]
    assert module.inplace_fused_experts(*call.values(), **options) is None
    close(given, expected)
