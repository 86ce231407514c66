"""`tessera.sglang` on stand-ins for SGLang of 2025 and of 2026."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import engine_ops  # noqa: E402
import tessera.sglang  # noqa: E402
from engine_packages import STANDINS  # noqa: E402
from experts_calls import layer  # noqa: E402
from tessera._library import load  # noqa: E402

LAYERS = "sglang.srt.layers.moe"
ALIGN = {
    "0.5.5": f"{LAYERS}.fused_moe_triton.moe_align_block_size",
    "0.5.23": f"{LAYERS}.moe_runner.triton_utils.moe_align_block_size",
}
NAMES = ("fused_topk", "grouped_topk", "biased_grouped_topk")
ROUTERS = [f"{LAYERS}.topk.{name}" for name in NAMES]
SERVED = {
    "0.5.5": [
        "sgl_kernel.moe_align_block_size",
        *ROUTERS,
        f"{LAYERS}.fused_moe_triton.fused_moe.fused_experts_impl",
    ],
    "0.5.23": [
        "sglang.kernels.ops.moe.moe_align_block_size",
        "sglang.kernels.ops.moe.moe_align.moe_align_block_size",
        *ROUTERS,
        f"{LAYERS}.moe_runner.triton_utils.fused_moe.fused_experts_impl",
    ],
}
E, B = 8, 4

UseEngine = Callable[[Path], None]


@pytest.fixture(params=list(SERVED))
def version(request: pytest.FixtureRequest, use_engine: UseEngine) -> str:
    name = str(request.param)
    use_engine(STANDINS / f"sglang-{name}")
    return name


@pytest.fixture
def newest(use_engine: UseEngine) -> str:
    use_engine(STANDINS / "sglang-0.5.23")
    return "0.5.23"


def ids(num_tokens: int = 24) -> Any:
    """Ids of experts, and -1 for those that live on other ranks."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-1, E, (num_tokens, 2), dtype=torch.int32, generator=generator)


def wrapper(version: str) -> ModuleType:
    return importlib.import_module(ALIGN[version])


def used(outputs: tuple[Any, ...]) -> list[list[int]]:
    """Outputs as lists, without what SGLang leaves unwritten: the experts past the last block."""
    sorted_ids, expert_ids, total = (output.tolist() for output in outputs)
    return [sorted_ids, expert_ids[: total[0] // B], total]


@pytest.mark.parametrize("num_tokens", [1, 2, 24, 3000])
def test_layer_gets_the_same_from_tessera(version: str, num_tokens: int) -> None:
    align = wrapper(version).moe_align_block_size
    expected = used(align(ids(num_tokens), B, E))
    assert engine_ops.calls
    assert tessera.sglang.install() == SERVED[version]
    engine_ops.calls.clear()
    assert used(align(ids(num_tokens), B, E)) == expected
    assert engine_ops.calls == []


def test_filtered_pairs_come_first_in_blocks_of_minus_one(version: str) -> None:
    tessera.sglang.install()
    topk_ids = torch.tensor([[2, -1], [-1, 0], [2, 7]], dtype=torch.int32)
    sorted_ids, expert_ids, total = wrapper(version).moe_align_block_size(topk_ids, B, E)
    assert total.tolist() == [16]
    assert sorted_ids[:16].tolist() == [1, 2, 6, 6, 3, 6, 6, 6, 0, 4, 6, 6, 5, 6, 6, 6]
    assert expert_ids.tolist() == [-1, 0, 2, 7] + [-1] * (len(expert_ids) - 4)
    assert engine_ops.calls == []


def test_invalid_ids_reach_the_caller(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load(), "validate_default", "now")  # as TESSERA_VALIDATE=now does
    tessera.sglang.install()
    with pytest.raises(tessera.InvalidRoutingError, match=r"topk_ids\[1\]: expected an id in "):
        wrapper(version).moe_align_block_size(torch.tensor([[-1, E]], dtype=torch.int32), B, E)
    assert engine_ops.calls == []


def test_op_that_is_compiled_at_run_time(newest: str) -> None:
    align = wrapper(newest).moe_align_block_size
    expected = [output.tolist() for output in align(ids(), B, E, pad_expert_ids=True)]
    tessera.sglang.install()
    engine_ops.calls.clear()
    found = [output.tolist() for output in align(ids(), B, E, pad_expert_ids=True)]
    assert found == expected
    assert engine_ops.calls == []


@pytest.mark.parametrize("option", ["ignore_invalid_expert", "return_inactive_prefix_count"])
def test_refused_calls_go_to_sglang_and_are_told_once(
    newest: str, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    tessera.sglang.install()
    for _ in range(2):
        wrapper(newest).moe_align_block_size(ids(), B, E, **{option: True})
    assert engine_ops.calls == ["align_with_filtered"] * 2
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "gets a call that Tessera refuses" in warnings[0]


@pytest.mark.parametrize(
    "option", ["write_inactive_prefix_count", "map_invalid_experts_to_sentinel"]
)
def test_options_of_the_compiled_op_go_to_sglang(
    newest: str, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    tessera.sglang.install()
    compiled = importlib.import_module("sglang.kernels.ops.moe.moe_align")
    num_slots = ids().numel() + (E + 1) * (B - 1)
    buffers = [torch.empty(n, dtype=torch.int32) for n in (num_slots, num_slots, 1, E + 2)]
    compiled.moe_align_block_size(ids(), E + 1, B, *buffers, True, **{option: True})
    assert engine_ops.calls == ["align_with_filtered"]
    assert f"{option}: expected False, got True" in caplog.text


def test_tensors_without_memory_go_to_sglang(
    newest: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    kernels = importlib.import_module("sglang.kernels.ops.moe")
    seen = []

    @functools.wraps(kernels.moe_align_block_size)
    def original(*arguments: Any) -> None:
        seen.append(type(arguments[0]))

    monkeypatch.setattr(kernels, "moe_align_block_size", original)
    tessera.sglang.install()
    align, topk_ids = wrapper(newest).moe_align_block_size, ids()
    with FakeTensorMode() as mode:
        align(mode.from_tensor(topk_ids), B, E)
    assert len(seen) == 1
    assert seen[0] is not torch.Tensor
    assert "expected a torch.Tensor with memory, got FakeTensor" in caplog.text


def test_install_again_changes_nothing(version: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tessera.sglang")
    module_name, _, name = SERVED[version][0].rpartition(".")
    module = importlib.import_module(module_name)
    original = getattr(module, name)
    signature = inspect.signature(original)
    tessera.sglang.install()
    replacement = getattr(module, name)
    tessera.sglang.install()
    assert getattr(module, name) is replacement
    assert replacement is not original
    assert inspect.signature(replacement) == signature
    assert [each.getMessage() for each in caplog.records] == [
        f"SGLang {version}: Tessera serves moe_align_block_size, {', '.join(NAMES)}, "
        "fused_experts_impl; TESSERA_SGLANG=0 turns it off"
    ]
    tessera.sglang.uninstall()
    tessera.sglang.uninstall()
    assert getattr(module, name) is original
    assert len(caplog.records) == 2


def test_environment_switches_it_off(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_SGLANG", "0")
    assert tessera.sglang.install() == []
    tessera.sglang.plugin()
    wrapper(version).moe_align_block_size(ids(), B, E)
    assert engine_ops.calls == ["align_with_filtered"]


def test_switches_are_read_at_every_install(
    newest: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whenever that changes what is served, one line says so."""
    caplog.set_level(logging.INFO, "tessera.sglang")
    monkeypatch.setenv("TESSERA_SGLANG_EXPERTS", "off")
    tessera.sglang.install()
    told = caplog.records[0].getMessage()
    assert told.startswith("TESSERA_SGLANG_EXPERTS: expected 0 or 1, got 'off', which is ignored")
    for value, are_served in (("0", [False]), ("0", []), ("1", [True]), ("", [])):
        caplog.clear()
        monkeypatch.setenv("TESSERA_SGLANG_EXPERTS", value)
        tessera.sglang.install()
        lines = [each.getMessage() for each in caplog.records]
        assert ["fused_experts_impl" in line for line in lines] == are_served


def test_op_with_other_parameters_is_left_alone(
    use_engine: UseEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The op as until mid-2025: one more buffer, and no group for filtered pairs."""
    (tmp_path / "sglang.py").write_text("__version__ = '0.4.3'")
    (tmp_path / "sgl_kernel.py").write_text(
        "def moe_align_block_size(topk_ids, num_experts, block_size, sorted_token_ids,\n"
        "    experts_ids, num_tokens_post_pad, token_cnts_buffer, cumsum_buffer): ...\n"
    )
    use_engine(tmp_path)
    assert tessera.sglang.install() == []
    assert "sgl_kernel.moe_align_block_size is left alone" in caplog.text


def test_plugin_registers_hooks_and_uninstall_makes_them_idle(newest: str) -> None:
    registry = importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry
    tessera.sglang.plugin()
    tessera.sglang.plugin()
    assert [target for target, _, _ in registry.hooks] == SERVED[newest]
    registry.apply_hooks()
    align = wrapper(newest).moe_align_block_size
    found = used(align(ids(), B, E))
    assert engine_ops.calls == []

    tessera.sglang.uninstall()
    assert used(align(ids(), B, E)) == found
    assert engine_ops.calls == ["align_with_filtered"]
    assert tessera.sglang.install() == SERVED[newest]
    align(ids(), B, E)
    assert engine_ops.calls == ["align_with_filtered"]


def test_experts_hook_is_idle_while_experts_are_switched_off(
    newest: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "tessera.sglang")
    registry = importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry
    tessera.sglang.plugin()
    registry.apply_hooks()
    module = importlib.import_module(SERVED[newest][-1].rpartition(".")[0])
    for value, engine_calls in (("", []), ("0", ["experts"]), ("1", [])):
        monkeypatch.setenv("TESSERA_SGLANG_EXPERTS", value)
        tessera.sglang.plugin()
        engine_ops.calls.clear()
        module.fused_experts_impl(**layer())
        wrapper(newest).moe_align_block_size(ids(), B, E)
        assert engine_ops.calls == engine_calls
        assert ("fused_experts_impl" in caplog.records[-1].getMessage()) is (value != "0")
    assert len(registry.hooks) == len(SERVED[newest])
    assert len(caplog.records) == 3


def test_plugin_after_install_registers_nothing(newest: str) -> None:
    registry = importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry
    tessera.sglang.install()
    tessera.sglang.plugin()
    assert registry.hooks == []


def test_plugin_is_what_sglang_finds() -> None:
    try:
        entry_points = metadata.distribution("tessera").entry_points
    except metadata.PackageNotFoundError:
        pytest.skip("tessera is not installed as a package, and has no entry points then")
    (entry_point,) = entry_points.select(group="sglang.srt.plugins")
    assert entry_point.name == "tessera"
    assert entry_point.load() is tessera.sglang.plugin


def test_plugin_never_fails(
    use_engine: UseEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sglang.py").write_text("")
    use_engine(tmp_path)
    tessera.sglang.plugin()
    assert "SGLang runs without Tessera" in caplog.text
