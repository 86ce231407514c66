"""Files in the forms that engines write, by every command: what is read, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera.cli.main import main

FOLDER = Path(
    os.environ.get(
        "TESSERA_ROUTING_FILES",
        Path(__file__).resolve().parents[2] / "../shared/routing-files",
    )
)
LOADS = "expected ids of tokens, got loads, which are without tokens"


def given(name: str) -> Path:
    """The file of this name; skips the test if it does not exist."""
    if not (FOLDER / name).exists():
        pytest.skip(f"no file {FOLDER / name}; TESSERA_ROUTING_FILES names their folder")
    return FOLDER / name


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def inspected(command: Command) -> Callable[..., dict[str, Any]]:
    def document(*arguments: object) -> dict[str, Any]:
        code, out, err = command("inspect", *arguments, "--json")
        assert (code, err) == (0, "")
        found: dict[str, Any] = json.loads(out)
        return found

    return document


# Tokens, layers, top_k and experts of what is read, and the options that it needs.
READ: dict[str, tuple[int, int, int, int, list[str]]] = {
    "vllm_routed_experts_int16.npy": (300, 4, 8, 64, []),
    "vllm_routed_experts_uint8.npy": (300, 4, 8, 64, []),
    "vllm_routed_experts.npz": (309, 4, 8, 64, []),
    "layers_first_3d.npy": (300, 4, 8, 64, ["--axes", "layers,tokens,top_k"]),
    "vllm_layer2_uint8.npy": (300, 1, 8, 64, []),
    "vllm_layer_last_token_zero.npy": (290, 1, 8, 64, []),
    "prompt_rows_zero_40.npy": (260, 1, 6, 64, []),
    "prompt_rows_zero_64.npy": (236, 1, 6, 64, []),
    "vllm_response.json": (20, 4, 8, 64, []),
    "vllm_response.jsonl": (20, 4, 8, 64, []),
    "vllm_base64_npy.jsonl": (300, 4, 8, 64, []),
    "expert_distribution_recorder_per_token_0.pt": (300, 4, 8, 64, []),
    "per_token_layer0.npy": (300, 1, 8, 64, []),
    "sglang_uint8_minus1_is_255.npy": (283, 1, 8, 64, []),
    "uint16_minus1_is_65535.npy": (283, 1, 8, 64, []),
    "routing_map_bool.npy": (300, 1, 8, 64, []),
    "routing_map_uint8.npy": (300, 1, 8, 64, []),
    "router_logits_fp32.npy": (300, 1, 8, 64, ["--top-k", "8"]),
    "rank0.jsonl": (50, 1, 8, 64, []),
    "rank1.jsonl": (50, 1, 8, 64, []),
    "log": (300, 1, 6, 64, []),
    "log.JSONL": (300, 1, 6, 64, []),
    "log.ndjson": (300, 1, 6, 64, []),
    "log.jsonl.gz": (300, 1, 6, 64, []),
    "logger_bom.jsonl": (100, 1, 8, 64, []),
    "logger_crlf.jsonl": (100, 1, 8, 64, []),
    "logger_blank_line_at_end.jsonl": (100, 1, 8, 64, []),
    "logger_nan_weights.jsonl": (100, 1, 8, 64, []),
    "logger_no_meta.jsonl": (100, 1, 8, 64, []),
    "logger_minus1.jsonl": (101, 1, 8, 64, []),
    "logger_zero_experts.jsonl": (100, 1, 8, 64, ["--zero-experts"]),
    "logger_dynamic_topk.jsonl": (100, 1, 7, 64, []),
    "logger_batch_in_a_line.jsonl": (5, 1, 8, 64, []),
    "batch_a_line.jsonl": (4, 1, 8, 64, []),
    "all_layers_in_a_line.jsonl": (1, 4, 6, 64, []),
    "layer_name.jsonl": (1, 1, 2, 64, []),
    "float_ids.jsonl": (1, 1, 2, 64, []),
    "big_endian.npy": (300, 1, 8, 64, []),
    "fortran_order.npy": (300, 1, 8, 64, []),
    "pandas_to_numpy.npy": (300, 1, 6, 64, []),
    "top1_flat.npy": (300, 1, 1, 64, []),
    "npz_expert_map.npz": (300, 1, 8, 64, []),
    "npz_expert_map_int64.npz": (300, 1, 8, 64, []),
    "npz_layers.npz": (300, 4, 8, 64, []),
    "flashinfer_packed_int32.npy": (300, 1, 8, 64, ["--packed"]),
}
# Layers and experts.
OF_LOADS: dict[str, tuple[int, int]] = {
    "expert_distribution_recorder_stat_0.pt": (4, 64),
    "eplb_load_layers_x_experts.npy": (4, 64),
    "megatron_tokens_per_expert_rank3.jsonl": (1, 16),
}
REFUSED: dict[str, str] = {
    "vllm_dense_layer_all_zero.npy": "no routing: every row is zeros",
    "router_logits_fp32.npy": "router logits [300, 64]: expected --top-k",
    "flashinfer_packed_int32.npy": "look like packed ids, (id << 16) | bfloat16 weight: --packed",
    "logger_zero_experts.jsonl": ":2: topk_ids: expected integers in [0, 64), got 64: --experts 71 "
    "if they are experts, --zero-experts if",
    "no_tokens.npy": "at least one of each, got [0, 6]",
    "top_k_0.npy": "at least one of each, got [5, 0]",
    "object_array.npy": "got an array of Python objects, which only unpickling would read",
    "dup_in_a_row.jsonl": ":2: topk_ids: expected different experts, got [3, 3]",
}


def test_every_file_of_the_folder_is_in_a_table() -> None:
    names = {path.name for path in given("README.md").parent.iterdir()} - {"README.md"}
    assert names == {*READ, *OF_LOADS, *REFUSED}


def require_torch(name: str) -> None:
    if name.endswith(".pt") and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")


@pytest.mark.parametrize("name", READ)
def test_inspect_and_align_read(
    name: str, command: Command, inspected: Callable[..., dict[str, Any]]
) -> None:
    require_torch(name)
    path = given(name)
    num_tokens, num_layers, top_k, num_experts, options = READ[name]
    document = inspected(path, *options)
    (model,) = document["models"]
    assert (model["top_k"], model["num_experts"]) == (top_k, num_experts)
    assert [layer["num_tokens"] for layer in model["layers"]] == [num_tokens] * num_layers
    code, out, err = command("align", path, "--json", *options)
    assert (code, err) == (0, "")
    workloads = json.loads(out)["workloads"]
    assert [one["shape"] for one in workloads] == [[num_tokens, top_k]] * num_layers
    assert [one["layer"] for one in workloads] == [one["layer"] for one in model["layers"]]
    if "expert_map" not in name:
        assert [one["expert_counts"] for one in workloads] == [
            one["expert_counts"] for one in model["layers"]
        ]


@pytest.mark.parametrize("name", READ)
def test_bench_reads(name: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessera.cli import bench

    require_torch(name)
    path = given(name)
    seen = []

    def stop(request: Any, name: str) -> Any:
        seen.extend(request.shapes)
        raise ValueError("seen")

    monkeypatch.setattr(bench, "_measure", stop)
    options = [*READ[name][-1], "--tokens", "1", "--device", "cpu"]
    code, _, err = command("bench", "--log", path, *options)
    assert code == 2
    assert err == "tessera bench: seen\n"
    assert len({shape.trace for shape in seen}) == READ[name][1]
    assert {(shape.top_k, shape.num_experts) for shape in seen} == {READ[name][2:4]}


@pytest.mark.parametrize("name", OF_LOADS)
def test_loads_without_tokens(
    name: str, command: Command, inspected: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    require_torch(name)
    path = given(name)
    (model,) = inspected(path)["models"]
    assert (len(model["layers"]), model["num_experts"], model["top_k"]) == (*OF_LOADS[name], 0)
    assert all(layer["ranks"] and not layer["batches"] for layer in model["layers"])
    code, out, _ = command("inspect", path)
    assert code == 0
    assert "loads without tokens" in out and "Missing: loads are without tokens" in out
    assert "nan" not in out
    assert "trust the advice" not in out and "cost model" not in out
    if importlib.util.find_spec("jinja2"):
        assert command("inspect", path, "--html", tmp_path / "a.html")[0] == 0
    assert f"{path}: {LOADS}" in command("align", path)[2]
    assert f"{path}: {LOADS}" in command("bench", "--log", path)[2]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_every_command_in_the_same_words(name: str, command: Command) -> None:
    path = given(name)
    messages = set()
    for words in (["inspect"], ["align"], ["bench", "--log"]):
        code, out, err = command(*words, path)
        assert (code, out) == (2, "")
        messages.add(err.removeprefix(f"tessera {words[0]}: "))
    (message,) = messages
    assert message.startswith(str(path))
    assert REFUSED[name] in message
    assert len(message.splitlines()) == 1


def test_what_is_left_out_is_counted(inspected: Callable[..., dict[str, Any]]) -> None:
    def counts(name: str) -> list[int]:
        (model,) = inspected(given(name))["models"]
        layer = model["layers"][0]
        return [layer[key] for key in ("num_unrecorded", "num_empty", "num_unused")]

    assert counts("prompt_rows_zero_40.npy") == [40, 0, 0]
    assert counts("prompt_rows_zero_64.npy") == [64, 0, 0]
    assert counts("vllm_layer_last_token_zero.npy") == [10, 0, 0]
    assert counts("per_token_layer0.npy") == [0, 0, 600]
    assert counts("logger_minus1.jsonl") == [0, 1, 5]
    assert counts("uint16_minus1_is_65535.npy") == [0, 17, 0]
    assert counts("logger_dynamic_topk.jsonl") == [0, 0, 0]


def test_files_together(inspected: Callable[..., dict[str, Any]]) -> None:
    paths = [given("rank0.jsonl"), given("rank1.jsonl")]
    (model,) = inspected(*paths, "--files", "ranks")["models"]
    assert [(layer["layer"], layer["num_tokens"]) for layer in model["layers"]] == [(0, 100)]
    (model,) = inspected(*paths, "--files", "layers")["models"]
    assert [(layer["layer"], layer["num_tokens"]) for layer in model["layers"]] == [
        ("rank0 layer 0", 50),
        ("rank1 layer 0", 50),
    ]
