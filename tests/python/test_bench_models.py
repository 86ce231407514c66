"""The options of `tessera bench` that vary shapes with the sizes of models."""

# ruff: noqa: F811, for the imported fixtures

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tessera
from fused_experts_gpu import HOST_OP, TINY, gpu, no_engines  # noqa: F401, they are fixtures
from tessera.cli import bench as command
from tessera.cli.main import main
from tessera.tools.bench import driver
from tessera.tools.bench.ops import OPS

pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture
def cuda_command(monkeypatch: pytest.MonkeyPatch, gpu: SimpleNamespace, no_engines: None) -> None:
    """The command on a machine with a GPU, with tiny shapes of two models."""
    both = [SimpleNamespace(name=name, available=True, detail="") for name in ("cpu", "cuda")]
    monkeypatch.setattr(tessera, "backends", lambda: both)
    tiny = [*TINY[:2], dataclasses.replace(TINY[0], model="Other")]
    op = dataclasses.replace(HOST_OP, presets={"table": tiny, "anchors": tiny[1:2]})
    monkeypatch.setitem(OPS, HOST_OP.name, dataclasses.replace(OPS[HOST_OP.name], cuda=op))
    monkeypatch.setattr(
        driver,
        "description",
        lambda device, commit: {"commit": commit, "gpu": "a GPU", "run": "r1", "machine": ""},
    )


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ([], ["tiny bfloat16/1", "tiny bfloat16/5", "Other bfloat16/1"]),
        (["--preset", "anchors"], ["tiny bfloat16/5"]),
        (["--model", "Other"], ["Other bfloat16/1"]),
        (["--model", "OTHER,Tiny", "--tokens", "1"], ["tiny bfloat16/1", "Other bfloat16/1"]),
        (["--model", "tiny", "--tokens", "2,3"], ["tiny bfloat16/2", "tiny bfloat16/3"]),
        (
            ["--model", "other", "--skew", "uniform,zipf"],
            ["Other bfloat16/1", "Other bfloat16/1/zipf"],
        ),
    ],
)
def test_shapes_are_chosen_by_model_tokens_and_skew(
    options: list[str], shapes: list[str], cuda_command: None, tmp_path: Path
) -> None:
    file = tmp_path / "a.json"
    words = ["--op", "fused_experts", "--device", "cuda", "--json", str(file)]
    assert main(["bench", *words, *options]) == 0
    document = json.loads(file.read_text())
    assert [row["shape"] for row in document["rows"]] == shapes
    assert list(document["methods"]) == ["burst", "sustained"]
    # One row is one line.
    lines = file.read_text().splitlines()
    assert sum(line.startswith('{"op": "fused_experts"') for line in lines) == len(shapes)


def test_ids_of_a_log(cuda_command: None, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).permuted(np.tile(np.arange(6), (40, 1)), axis=1)[:, :3]
    log = tmp_path / "log.jsonl"
    lines = [{"type": "meta", "num_experts": 6, "top_k": 3}]
    for i, each in enumerate(ids.tolist()):
        lines.append({"type": "route", "token_idx": i, "layer": 0, "topk_ids": each})
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    file = tmp_path / "a.json"
    words = ["--op", "fused_experts", "--device", "cuda", "--log", str(log), "--json", str(file)]
    assert main(["bench", *words, "--model", "tiny"]) == 0
    rows = json.loads(file.read_text())["rows"]
    found = [(row["num_tokens"], row["num_experts"], row["top_k"], row["skew"]) for row in rows]
    assert found == [(1, 6, 3, "log"), (5, 6, 3, "log")]
    assert all(row["trace"] for row in rows)
    # 11 tokens in 4 sets are more than the log has.
    assert main(["bench", *words[:-2], "--tokens", "11"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "x"], "--model: expected some of tiny, Other, got x"),
        (
            ["--skew", "one-hot-expert"],
            "--skew: expected some of uniform, zipf with --op fused_experts, got one-hot-expert",
        ),
        (["--experts", "4"], "--op fused_experts: expected no --experts beside it"),
        (["--preset", "quick"], "--preset: expected some of table, anchors with --op fused_exper"),
        (
            ["--method", "graph"],
            "--method: expected some of chain, burst, sustained with --device cuda",
        ),
    ],
)
def test_options_that_the_layer_refuses(
    options: list[str], message: str, cuda_command: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--op", "fused_experts", "--device", "cuda", *options]) == 2
    assert message in capsys.readouterr().err


def test_models_are_for_the_layer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cpu", "--model", "x"]) == 2
    assert capsys.readouterr().err == (
        "tessera bench: --model: expected --op fused_experts beside it, got --op align_block_size\n"
    )


def test_auto_takes_the_gpu(cuda_command: None) -> None:
    assert command._device("auto", OPS["fused_experts"]) == "cuda"
