"""`tessera.vllm.install()` on stand-ins for three generations of vLLM."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import engine_ops  # noqa: E402
import tessera.vllm  # noqa: E402
from engine_packages import STANDINS  # noqa: E402
from tessera._library import load  # noqa: E402
from tessera.vllm.generations import GENERATIONS, generation_of  # noqa: E402

VERSIONS = ["0.9.2", "0.12.0", "0.33.0"]
NAMES = ["moe_align_block_size", "batched_moe_align_block_size", "moe_lora_align_block_size"]
WRAPPER = "vllm.model_executor.layers.fused_moe.moe_align_block_size"
E, B = 8, 4
GARBAGE = 12345

UseEngine = Callable[[Path], None]


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, use_engine: UseEngine) -> str:
    name = str(request.param)
    use_engine(STANDINS / f"vllm-{name}")
    return name


def custom_ops() -> ModuleType:
    return importlib.import_module("vllm._custom_ops")


def int32(*values: int) -> Any:
    return torch.tensor(values, dtype=torch.int32)


def garbage(*lengths: int) -> tuple[Any, ...]:
    return tuple(torch.full((length,), GARBAGE, dtype=torch.int32) for length in lengths)


def ids(num_tokens: int = 24, top_k: int = 2, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(E, (num_tokens, top_k), dtype=torch.int32, generator=generator)


def align_call(**options: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
    topk_ids = ids()
    num_slots = topk_ids.numel() + E * (B - 1)
    out = garbage(num_slots, -(-num_slots // B), 1)
    names = ("sorted_token_ids", "experts_ids", "num_tokens_post_pad")
    arguments = {"topk_ids": topk_ids, "num_experts": E, "block_size": B}
    return {**arguments, **dict(zip(names, out, strict=True)), **options}, out


def batched_call(**options: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
    counts = int32(2, 3, 0, 6, 8)
    out = garbage(len(counts) * 8, len(counts) * 2, 1)
    names = ("sorted_ids", "expert_ids", "num_tokens_post_pad")
    arguments = {"max_tokens_per_batch": 8, "block_size": B, "expert_num_tokens": counts}
    return {**arguments, **dict(zip(names, out, strict=True)), **options}, out


def lora_call(**options: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Three adapters: the first is active, the second disabled, the third not asked for."""
    topk_ids, max_loras = ids(), 3
    num_slots = topk_ids.numel() + E * (B - 1)
    num_blocks = -(-num_slots // B)
    out = garbage(max_loras * num_slots, max_loras * num_blocks, max_loras)
    arguments = {
        "topk_ids": topk_ids,
        "token_lora_mapping": torch.arange(len(topk_ids), dtype=torch.int32) % 4 - 1,
        "num_experts": E,
        "block_size": B,
        "max_loras": max_loras,
        "max_num_tokens_padded": num_slots,
        "max_num_m_blocks": num_blocks,
        "adapter_enabled": int32(1, 0, 1, 1),
        "lora_ids": int32(-1, 0, 1),
    }
    names = ("sorted_token_ids", "experts_ids", "num_tokens_post_pad")
    return {**arguments, **dict(zip(names, out, strict=True)), **options}, out


def results(name: str, **options: Any) -> list[list[int]]:
    """The outputs of vLLM's current op."""
    arguments, out = CALLS[name](**options)
    getattr(custom_ops(), name)(**arguments)
    if name == "moe_lora_align_block_size":  # vLLM leaves the other rows as they were
        out = tuple(array.view(3, -1)[0] for array in out)
    return [array.tolist() for array in out]


CALLS: dict[str, Callable[..., tuple[dict[str, Any], tuple[Any, ...]]]] = {
    "moe_align_block_size": align_call,
    "batched_moe_align_block_size": batched_call,
    "moe_lora_align_block_size": lora_call,
}


def test_every_op_of_the_version_is_served_and_gives_the_same(version: str) -> None:
    present = [name for name in NAMES if hasattr(custom_ops(), name)]
    assert len(present) == (1 if version == "0.9.2" else 3)
    expected = {name: results(name) for name in present}
    signatures = {name: inspect.signature(getattr(custom_ops(), name)) for name in present}
    assert engine_ops.calls

    served = tessera.vllm.install()
    engine_ops.calls.clear()
    assert set(served) >= {f"vllm._custom_ops.{name}" for name in present}
    assert {name: results(name) for name in present} == expected
    assert engine_ops.calls == []
    assert {name: inspect.signature(getattr(custom_ops(), name)) for name in present} == signatures


def test_tail_is_the_versions(version: str) -> None:
    tessera.vllm.install()
    sorted_ids, expert_ids, total = results("moe_align_block_size")
    assert set(expert_ids[total[0] // B :]) == {-1 if version == "0.33.0" else 0}
    assert set(sorted_ids[total[0] :]) == {ids().numel()}
    assert engine_ops.calls == []


def test_rows_of_other_adapters_are_filler(use_engine: UseEngine) -> None:
    use_engine(STANDINS / "vllm-0.33.0")
    tessera.vllm.install()
    arguments, (sorted_ids, expert_ids, totals) = lora_call()
    custom_ops().moe_lora_align_block_size(**arguments)
    assert totals.tolist()[1:] == [0, 0]
    assert set(sorted_ids.view(3, -1)[1:].flatten().tolist()) == {ids().numel()}
    assert set(expert_ids.view(3, -1)[1:].flatten().tolist()) == {-1}


def test_map_in_the_op_groups_by_local_expert(use_engine: UseEngine) -> None:
    use_engine(STANDINS / "vllm-0.33.0")
    expert_map = int32(-1, 0, -1, 1, 2, -1, -1, 3)
    names = ("moe_align_block_size", "moe_lora_align_block_size")
    expected = {name: results(name, expert_map=expert_map) for name in names}
    tessera.vllm.install()
    engine_ops.calls.clear()
    assert {name: results(name, expert_map=expert_map) for name in names} == expected
    assert engine_ops.calls == []


@pytest.mark.parametrize("pad_sorted_ids", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 1, 3, 24])
@pytest.mark.parametrize("mapped", [False, True])
def test_wrapper_gives_the_same_wherever_it_was_imported(
    version: str, mapped: bool, num_tokens: int, pad_sorted_ids: bool
) -> None:
    consumer = importlib.import_module("vllm.model_executor.layers.fused_moe.fused_moe")
    # The last entry is what an index of -1, the tail of 2026, reads.
    expert_map = int32(2, 0, -1, 1, -1, -1, -1, 3) if mapped else None
    options = {"expert_map": expert_map, "pad_sorted_ids": pad_sorted_ids}

    def found() -> list[tuple[str, list[int]]]:
        outputs = consumer.fused_experts(ids(num_tokens), B, E, **options)
        return [(str(output.dtype), output.tolist()) for output in outputs]

    expected = found()
    by_name = consumer.moe_align_block_size
    served = tessera.vllm.install(wrapper=True)
    engine_ops.calls.clear()
    assert f"{WRAPPER}.moe_align_block_size" in served
    assert consumer.moe_align_block_size is not by_name
    assert found() == expected
    assert engine_ops.calls == []

    tessera.vllm.uninstall()
    assert consumer.moe_align_block_size is by_name
    assert importlib.import_module(WRAPPER).moe_align_block_size is by_name


def test_wrapper_leaves_invalid_experts_out(use_engine: UseEngine) -> None:
    use_engine(STANDINS / "vllm-0.33.0")
    align = importlib.import_module(WRAPPER)
    options = {"expert_map": int32(-1, 0, -1, 1, 2, -1, -1, 3), "ignore_invalid_experts": True}
    expected = [array.tolist() for array in align.moe_align_block_size(ids(), B, E, **options)]
    tessera.vllm.install(wrapper=True)
    engine_ops.calls.clear()
    found = [array.tolist() for array in align.moe_align_block_size(ids(), B, E, **options)]
    assert found == expected
    assert engine_ops.calls == []


def test_wrapper_allocates_tensors_that_begin_at_16_bytes(version: str) -> None:
    tessera.vllm.install(wrapper=True)
    outputs = importlib.import_module(WRAPPER).moe_align_block_size(ids(7), B, E)
    assert [output.data_ptr() % 16 for output in outputs] == [0, 0, 0]


def test_scatter_idx_goes_to_vllm(use_engine: UseEngine, caplog: pytest.LogCaptureFixture) -> None:
    use_engine(STANDINS / "vllm-0.33.0")
    tessera.vllm.install(wrapper=True)
    for _ in range(2):
        *_, scatter_idx = importlib.import_module(WRAPPER).moe_align_block_size(
            ids(), B, E, return_scatter_idx=True
        )
    assert engine_ops.calls == ["align", "scatter"] * 2
    assert sorted(scatter_idx.flatten().tolist())[0] == 0
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert warnings == [
        f"{WRAPPER}.moe_align_block_size gets a call that Tessera refuses: moe_align_block_size: "
        "return_scatter_idx: expected False, got True",
        "vllm._custom_ops.moe_align_block_size gets a call that Tessera refuses: "
        "moe_align_block_size: scatter_idx: expected None, got Tensor",
    ]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("moe_align_block_size", {"sorted_token_ids": garbage(50)[0]}),
        ("moe_align_block_size", {"topk_ids": ids().t()}),
        ("batched_moe_align_block_size", {"sorted_ids": garbage(30)[0]}),
        ("moe_lora_align_block_size", {"max_num_tokens_padded": 71}),
    ],
    ids=["too short", "strided", "batched, too short", "other rows"],
)
def test_refused_calls_go_to_vllm_and_are_told_once(
    use_engine: UseEngine, caplog: pytest.LogCaptureFixture, name: str, options: dict[str, Any]
) -> None:
    use_engine(STANDINS / "vllm-0.12.0")
    tessera.vllm.install()
    arguments, _ = CALLS[name](**options)
    for _ in range(2):
        getattr(custom_ops(), name)(**arguments)
    assert len(engine_ops.calls) >= 2
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"vllm._custom_ops.{name} gets a call that Tessera refuses: ")


def test_invalid_ids_reach_the_caller(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load(), "validate_default", "now")  # as TESSERA_VALIDATE=now does
    tessera.vllm.install()
    topk_ids = ids()
    topk_ids[3, 1] = E
    arguments, _ = align_call(topk_ids=topk_ids)
    with pytest.raises(tessera.InvalidRoutingError, match=r"topk_ids\[7\]: expected an id in "):
        custom_ops().moe_align_block_size(**arguments)
    assert engine_ops.calls == []


@pytest.mark.parametrize("name", NAMES)
def test_tensors_without_memory_go_to_vllm(
    use_engine: UseEngine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    use_engine(STANDINS / "vllm-0.33.0")
    seen = []

    @functools.wraps(getattr(custom_ops(), name))
    def original(**arguments: Any) -> None:
        seen.append(set(map(type, arguments.values())))

    monkeypatch.setattr(custom_ops(), name, original)
    tessera.vllm.install()
    arguments, _ = CALLS[name]()
    with FakeTensorMode() as mode:
        fake = {
            key: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for key, value in arguments.items()
        }
        getattr(custom_ops(), name)(**fake)
    assert len(seen) == 1
    assert torch.Tensor not in seen[0]
    assert "expected a torch.Tensor with memory, got FakeTensor" in caplog.text


def test_install_again_changes_nothing(version: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vllm.tessera")
    original = custom_ops().moe_align_block_size
    served = tessera.vllm.install()
    replacement = custom_ops().moe_align_block_size
    assert tessera.vllm.install() == served
    assert custom_ops().moe_align_block_size is replacement
    (line,) = [each.getMessage() for each in caplog.records]
    shown = re.fullmatch(f"vLLM {version}: Tessera serves (.*); TESSERA_VLLM=0 turns it off", line)
    assert shown
    names = shown[1].split(", ")
    assert len(set(names)) == len(names)
    assert all(name.endswith(tuple(f".{each}" for each in names)) for name in served)
    tessera.vllm.install(wrapper=True)
    assert len(caplog.records) == 2

    tessera.vllm.uninstall()
    tessera.vllm.uninstall()
    assert custom_ops().moe_align_block_size is original
    assert len(caplog.records) == 3
    tessera.vllm.install()
    results("moe_align_block_size")
    assert engine_ops.calls == []


@pytest.mark.parametrize("variable", ["TESSERA_VLLM", "TESSERA_VLLM_EXPERTS"])
def test_unknown_value_is_told_and_served(
    use_engine: UseEngine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    use_engine(STANDINS / "vllm-0.33.0")
    served = tessera.vllm.install()
    tessera.vllm.uninstall()
    monkeypatch.setenv(variable, "false")
    assert tessera.vllm.install() == served
    tessera.vllm.plugin()
    assert caplog.text.count(f"{variable}: expected 0 or 1, got 'false', which is ignored") == 1


def test_environment_switches_it_off(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_VLLM", "0")
    original = custom_ops().moe_align_block_size
    assert tessera.vllm.install(wrapper=True) == []
    tessera.vllm.plugin()
    assert custom_ops().moe_align_block_size is original


def test_unknown_parameters_are_left_alone(
    version: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moe_align_block_size(block_size: int, topk_ids: Any) -> None:
        raise AssertionError("not called")

    monkeypatch.setattr(custom_ops(), "moe_align_block_size", moe_align_block_size)
    assert "vllm._custom_ops.moe_align_block_size" not in tessera.vllm.install()
    assert custom_ops().moe_align_block_size is moe_align_block_size
    assert "got (block_size, topk_ids)" in caplog.text


def test_plugin_is_what_vllm_finds(version: str) -> None:
    try:
        entry_points = metadata.distribution("tessera").entry_points
    except metadata.PackageNotFoundError:
        pytest.skip("tessera is not installed as a package, and has no entry points then")
    (entry_point,) = entry_points.select(group="vllm.general_plugins")
    assert entry_point.name == "tessera"
    entry_point.load()()
    results("moe_align_block_size")
    assert engine_ops.calls == []


def test_plugin_never_fails(
    use_engine: UseEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").write_text("__version__ = '0.33.0'")
    use_engine(tmp_path)
    tessera.vllm.plugin()
    assert "vLLM runs without Tessera" in caplog.text
    with pytest.raises(ImportError, match="_custom_ops"):
        tessera.vllm.install()


def test_import_is_cheap() -> None:
    program = (
        "import sys, tessera.vllm, tessera.sglang\n"
        "print([name for name in ('torch', 'vllm', 'sglang', 'tvm_ffi') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_generation_is_the_latest_that_came_before() -> None:
    assert [generation.since for generation in GENERATIONS] == sorted(
        generation.since for generation in GENERATIONS
    )
    assert generation_of("0.8.5") is GENERATIONS[0]
    assert generation_of("0.10.0.post1").since == (0, 10, 0)
    assert generation_of("0.11.2.dev13+g1234").since == (0, 11, 1)
    assert generation_of("0.11.0").since == (0, 11, 0)
    assert generation_of("0.22.1").since == (0, 21, 0)
    assert generation_of("0.16.0").tail_expert == 0
    assert generation_of("0.17").tail_expert == -1
    assert generation_of("1.0.0") is GENERATIONS[-1]
    assert generation_of("dev") is GENERATIONS[-1]
