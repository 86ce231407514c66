"""Python files of real vLLM versions: their signatures, and their wrapper over Tessera.

Takes the installed vLLM, or unpacked wheels in the folders that TESSERA_VLLM_SITE lists.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import engine_ops  # noqa: E402
import tessera.vllm  # noqa: E402
from engine_packages import STANDINS, Nothing, provide, signatures, sites, version  # noqa: E402
from tessera.vllm.generations import KERNEL, generation_of  # noqa: E402

FUSED_MOE = "vllm.model_executor.layers.fused_moe"
WRAPPER_FILE = Path(*FUSED_MOE.split("."), "moe_align_block_size.py")
E, B = 8, 4


@pytest.mark.parametrize("site", sites("vllm"))
def test_table_has_the_signatures(site: Path) -> None:
    generation = generation_of(version(site, "vllm"))
    ops = signatures(site / "vllm/_custom_ops.py")
    served = {name: tuple(ops[name]) for name in generation.ops}
    assert served == generation.ops
    for (module, name), parameters in generation.functions.items():
        file = site / Path(*module.split(".")).with_suffix(".py")
        found = tuple(signatures(file)[name])
        # Methods have had more from some version on.
        assert (found[: len(parameters)] if "." in name else found) == parameters
    if generation.kernel is not None:
        module, name = generation.kernel
        kernel = signatures(site / Path(*module.split(".")).with_suffix(".py"))[name]
        assert tuple(kernel)[: len(KERNEL)] == KERNEL
    wrapper = signatures(site / WRAPPER_FILE)["moe_align_block_size"]
    assert tuple(wrapper) == generation.wrapper


@pytest.mark.parametrize("site", sites("vllm"))
def test_standin_of_its_generation_has_the_signatures(site: Path) -> None:
    generation = generation_of(version(site, "vllm"))
    standins = {
        generation_of(folder.name.partition("-")[2]).since: folder
        for folder in STANDINS.glob("vllm-*")
    }
    if generation.since not in standins:
        pytest.skip(f"no stand-in is of the generation of {generation.since}")
    standin = standins[generation.since]
    modules = {module for module, _ in generation.functions}
    files = {Path(*module.split(".")).with_suffix(".py") for module in modules}
    watched = [] if generation.kernel is None else [generation.kernel]
    methods = {name for _, name in (*generation.functions, *watched)}
    for file in (Path("vllm/_custom_ops.py"), WRAPPER_FILE, *files):
        real = signatures(site / file)
        # Of other methods, the stand-ins have none.
        expected = {name: real[name] for name in real if "." not in name or name in methods}
        assert signatures(standin / file) == expected


@pytest.fixture
def real_vllm(
    request: pytest.FixtureRequest, use_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> str:
    site: Path = request.param
    found = version(site, "vllm")
    packages = ["vllm", "vllm.model_executor", "vllm.model_executor.layers", FUSED_MOE]
    arithmetic = {"cdiv": lambda a, b: -(-a // b), "round_up": lambda a, b: -(-a // b) * b}
    triton = Nothing("triton")
    triton.__dict__.update(cdiv=arithmetic["cdiv"], jit=lambda function: function)
    provide(
        monkeypatch,
        site,
        {name: {"__version__": found} if name == "vllm" else {} for name in packages},
        {
            "vllm.envs": {"VLLM_PLUGINS": ["tessera"]},
            "vllm.logger": {"init_logger": logging.getLogger},
            "vllm.platforms": {"current_platform": Nothing("current_platform")},
            "vllm.scalar_type": {"ScalarType": object, "scalar_types": SimpleNamespace()},
            "vllm.triton_utils": {"triton": triton, "tl": Nothing("tl")},
            "vllm.utils": arithmetic,
            "vllm.utils.flashinfer": {},
            "vllm.utils.math_utils": arithmetic,
        },
    )
    return found


@pytest.mark.parametrize("real_vllm", sites("vllm"), indirect=True)
@pytest.mark.parametrize("num_tokens", [1, 24])
@pytest.mark.parametrize("option", [None, "mapped", "ignored"])
def test_real_wrapper_over_tessera(real_vllm: str, option: str | None, num_tokens: int) -> None:
    """vLLM's own Python function, first over the replaced op, then replaced itself."""
    generation = generation_of(real_vllm)
    options: dict[str, Any] = {}
    expert_map = torch.tensor([-1, 0, -1, 1, 2, -1, -1, 3], dtype=torch.int32)
    if option is not None:
        options["expert_map"] = expert_map
    if option == "ignored":
        if "ignore_invalid_experts" not in generation.wrapper:
            pytest.skip(f"vLLM {real_vllm} has no ignore_invalid_experts")
        options["ignore_invalid_experts"] = True
    topk_ids = torch.randint(E, (num_tokens, 2), dtype=torch.int32)

    assert set(tessera.vllm.install()) >= {f"vllm._custom_ops.{name}" for name in generation.ops}
    wrapper = importlib.import_module(f"{FUSED_MOE}.moe_align_block_size")
    sorted_ids, expert_ids, total = wrapper.moe_align_block_size(topk_ids, B, E, **options)

    expected = tuple(torch.empty_like(each) for each in (sorted_ids, expert_ids, total))
    in_op = expert_map if option == "ignored" else None
    engine_ops.align(topk_ids, E, B, expected, tail=generation.tail_expert, expert_map=in_op)
    if option == "mapped":
        expected = (expected[0], expert_map[expected[1]], expected[2])
    most = topk_ids.numel() + E * (B - 1)
    if generation.room_for_used_experts:
        most = min(most, topk_ids.numel() * B)
    assert sorted_ids.shape == (most,)
    assert expert_ids.shape == (math.ceil(most / B),)
    assert sorted_ids.tolist() == expected[0].tolist()
    assert expert_ids.tolist() == expected[1].tolist()
    assert total.tolist() == expected[2].tolist()

    original = wrapper.moe_align_block_size
    tessera.vllm.install(wrapper=True)
    assert wrapper.moe_align_block_size is not original
    found = wrapper.moe_align_block_size(topk_ids, B, E, **options)
    assert [array.tolist() for array in found] == [array.tolist() for array in expected]


@pytest.mark.parametrize("real_vllm", sites("vllm"), indirect=True)
def test_real_batched_wrapper_over_tessera(real_vllm: str) -> None:
    if "batched_moe_align_block_size" not in generation_of(real_vllm).ops:
        pytest.skip(f"vLLM {real_vllm} has no batched_moe_align_block_size")
    counts = torch.tensor([2, 3, 0, 6, 8], dtype=torch.int32)
    tessera.vllm.install()
    wrapper = importlib.import_module(f"{FUSED_MOE}.moe_align_block_size")
    found = wrapper.batched_moe_align_block_size(8, B, counts)
    expected = tuple(torch.empty_like(each) for each in found)
    engine_ops.batched(8, B, counts, expected)
    assert [array.tolist() for array in found] == [array.tolist() for array in expected]


@pytest.mark.parametrize("real_vllm", sites("vllm"), indirect=True)
def test_real_loader_of_plugins_calls_tessera(real_vllm: str) -> None:
    if importlib.util.find_spec("vllm.plugins") is None:
        pytest.skip("no vllm/plugins in this folder")
    importlib.import_module("vllm.plugins").load_general_plugins()
    wrapper = importlib.import_module(f"{FUSED_MOE}.moe_align_block_size")
    *_, total = wrapper.moe_align_block_size(torch.zeros((3, 1), dtype=torch.int32), B, E)
    assert total.tolist() == [B]
