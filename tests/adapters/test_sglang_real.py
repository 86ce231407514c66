"""Python files of real SGLang versions: their signatures, their wrapper, and their hooks.

Takes the installed SGLang, or unpacked wheels in the folders that TESSERA_SGLANG_SITE lists; such a
folder may hold `sgl_kernel` beside `sglang`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import engine_ops  # noqa: E402
import tessera.sglang  # noqa: E402
from engine_packages import STANDINS, provide, signatures, sites  # noqa: E402
from tessera.sglang import ops  # noqa: E402

E, B = 8, 4
KERNELS = Path("sglang/kernels/ops/moe")
LAYERS = "sglang.srt.layers.moe"
WRAPPERS = (
    f"{LAYERS}.moe_runner.triton_utils.moe_align_block_size",
    f"{LAYERS}.fused_moe_triton.moe_align_block_size",
)
FILES = (
    KERNELS / "__init__.py",
    KERNELS / "moe_align.py",
    Path("sgl_kernel/moe.py"),
    *(Path(*wrapper.split(".")).with_suffix(".py") for wrapper in WRAPPERS),
)


@pytest.mark.parametrize("site", sites("sglang"))
def test_standin_has_the_signatures(site: Path) -> None:
    found = {}
    for file in FILES:
        if (site / file).exists():
            found[file] = signatures(site / file)["moe_align_block_size"]
    standins = []
    for folder in STANDINS.glob("sglang-*"):
        # The real package imports its op from a separate module.
        files = [
            Path("sgl_kernel/__init__.py") if "moe.py" in file.name else file for file in FILES
        ]
        standins.append(
            {
                file: signatures(folder / own)["moe_align_block_size"]
                for file, own in zip(FILES, files, strict=True)
                if file in found and (folder / own).exists()
            }
        )
    if not found:
        pytest.skip("this SGLang has its function in another file")
    assert found in standins


@pytest.mark.parametrize("site", sites("sglang"))
def test_op_begins_with_the_parameters_that_are_served(site: Path) -> None:
    expected = {
        KERNELS / "__init__.py": tessera.sglang._PARAMETERS,
        KERNELS / "moe_align.py": tessera.sglang._COMPILED_PARAMETERS,
        Path("sgl_kernel/moe.py"): tessera.sglang._PARAMETERS,
    }
    present = [file for file in expected if (site / file).exists()]
    if not present:
        pytest.skip("no file of the op here: it is in the package sgl_kernel")
    for file in present:
        parameters = tuple(signatures(site / file)["moe_align_block_size"])
        assert parameters[: len(expected[file])] == expected[file]
    served = tuple(inspect.signature(ops.moe_align_block_size).parameters)
    assert served[: len(tessera.sglang._PARAMETERS)] == tessera.sglang._PARAMETERS


@pytest.fixture
def real_sglang(
    request: pytest.FixtureRequest, use_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The real package without its `__init__.py`, over a stand-in for the kernels' package."""
    site: Path = request.param
    use_engine(STANDINS / "sglang-0.5.5")  # for its sgl_kernel
    layers = [LAYERS, *(wrapper.rpartition(".")[0] for wrapper in WRAPPERS)]
    # A platform with the op, and without the CUDA versions' kernels for small batches.
    platform = {"is_hip": lambda: True}
    setting = SimpleNamespace(get=lambda: False)
    provide(
        monkeypatch,
        site,
        {
            "sglang": {"__version__": "0"},
            "sglang.srt": {},
            "sglang.srt.layers": {},
            **{name: {} for name in [layers[0], f"{LAYERS}.moe_runner", *layers[1:]]},
            **({"sglang.srt.plugins": {}} if (site / "sglang/srt/plugins").exists() else {}),
        },
        {
            "sglang.srt.environ": {"envs": SimpleNamespace(SGLANG_EXPERIMENTAL_LORA_OPTI=setting)},
            "sglang.srt.utils": platform,
            "triton": {"cdiv": lambda a, b: -(-a // b)},
        },
    )
    if (site / KERNELS).exists():
        provide(
            monkeypatch,
            site,
            {"sglang.kernels": {}, "sglang.kernels.ops": {}},
            {
                "sglang.kernels.jit": {},
                "sglang.kernels.jit.utils": {"cache_once": functools.cache},
                "sglang.kernels.registry": {},
                "sglang.kernels.selector": {},
                "sglang.kernels.spec": dict.fromkeys(
                    ["CUDA_ONLY", "CapabilityRequirement", "KernelBackend", "KernelSpec"],
                    MagicMock(),
                ),
            },
        )
    return site


def real_wrapper(site: Path) -> Any:
    for name in WRAPPERS:
        if (site / Path(*name.split(".")).with_suffix(".py")).exists():
            return importlib.import_module(name)
    pytest.skip("this SGLang has its function in another file")


def check(wrapper: Any) -> None:
    topk_ids = torch.randint(-1, E, (24, 2), dtype=torch.int32)
    found = wrapper.moe_align_block_size(topk_ids, B, E)
    assert engine_ops.calls == []
    expected = tuple(torch.empty_like(each) for each in found)
    engine_ops.align_with_filtered(topk_ids, E + 1, B, expected, tail=-1)
    assert [array.tolist() for array in found] == [array.tolist() for array in expected]


@pytest.mark.parametrize("real_sglang", sites("sglang"), indirect=True)
def test_real_wrapper_over_tessera(real_sglang: Path) -> None:
    wrapper = real_wrapper(real_sglang)
    assert tessera.sglang.install()
    check(wrapper)


@pytest.mark.parametrize("real_sglang", sites("sglang"), indirect=True)
def test_real_hooks_put_tessera_in(real_sglang: Path) -> None:
    if not (real_sglang / "sglang/srt/plugins").exists():
        pytest.skip("this SGLang has no plugins")
    wrapper = real_wrapper(real_sglang)
    registry = importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry
    tessera.sglang.plugin()
    registry.apply_hooks()
    check(wrapper)
