"""Files in the forms that matter most, made here: what the commands read, and what they refuse."""

from __future__ import annotations

import base64
import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.cli.main import main
from tessera.contract import synthetic_topk_ids

LOADS = "expected ids of tokens, got loads, which are without tokens"

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


IDS = synthetic_topk_ids(300, 16, 4, seed=1)
MODEL = np.stack([IDS, (IDS + 1) % 16, (IDS + 5) % 16], axis=1)


def counts_of(document: dict[str, Any]) -> list[list[int]]:
    return [layer["expert_counts"] for model in document["models"] for layer in model["layers"]]


def expected() -> list[list[int]]:
    return [np.bincount(MODEL[:, layer].reshape(-1), minlength=16).tolist() for layer in range(3)]


def test_all_layers_of_a_model(
    tmp_path: Path, command: Command, inspected: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / "ids.npy"
    for array in (MODEL.astype(np.int16), np.asfortranarray(MODEL), MODEL.astype(">i8")):
        np.save(path, array)
        assert counts_of(inspected(path)) == expected()
        assert counts_of(inspected(path, "--layer", 2)) == expected()[2:]
        document = json.loads(command("align", path, "--json", "--layer", 1)[1])
        assert [one["expert_counts"] for one in document["workloads"]] == expected()[1:2]
    assert command("align", path, "--layer", 7)[2] == (
        f"tessera align: {path}: --layer: expected some of 0, 1, 2, got 7\n"
    )
    np.save(path, MODEL.transpose(1, 0, 2)[:, :100])
    code, _, err = command("inspect", path)
    assert code == 2
    assert "expected --axes tokens,layers,top_k or --axes layers,tokens,top_k, since the" in err
    assert len(counts_of(inspected(path, "--axes", "layers,tokens,top_k"))) == 3


def test_responses(tmp_path: Path, inspected: Callable[..., dict[str, Any]]) -> None:
    stored = io.BytesIO()
    np.save(stored, MODEL[10:].astype(np.uint8))
    records = [
        {"prompt_routed_experts": MODEL[:10].tolist(), "choices": [{"routed_experts": None}]},
        {"choices": [{"routed_experts": base64.b64encode(stored.getvalue()).decode()}]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\r\n" for one in records))
    (tmp_path / "b.json").write_text("\ufeff" + json.dumps(records, indent=1))
    for name in ("a.jsonl", "b.json"):
        assert counts_of(inspected(tmp_path / name)) == expected()
    found = inspected(tmp_path / "a.jsonl", "--phase", "prompt", "--experts", 16)
    assert [layer["num_tokens"] for layer in found["models"][0]["layers"]] == [10] * 3
    text = base64.b64encode(MODEL.astype("<i4").tobytes()).decode()
    (tmp_path / "c.json").write_text(json.dumps({"meta_info": {"routed_experts": text}}))
    options = ("--num-layers", 3, "--top-k", 4)
    assert counts_of(inspected(tmp_path / "c.json", *options)) == expected()


def test_standard_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inspected: Callable[..., dict[str, Any]],
) -> None:
    from tessera.tools.routing_files import source

    lines = [{"layer": 0, "topk_ids": row} for row in IDS.tolist()]
    packed = gzip.compress("".join(json.dumps(one) + "\n" for one in lines).encode())
    monkeypatch.setattr(source, "_copies", {})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(packed)))
    document = inspected("-")
    assert counts_of(document) == expected()[:1]
    assert document["logs"][0]["file"] == "standard input"
    assert document["models"][0]["name"] == "standard input"
    for copy in source._copies.values():
        copy.close()


def test_minus_one_stored_unsigned(
    tmp_path: Path, inspected: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / "ids.npy"
    ids = np.concatenate([np.full((5, 4), 255, np.uint8), IDS.astype(np.uint8)])
    np.save(path, ids)
    assert counts_of(inspected(path)) == expected()[:1]
    # Where there are as many experts, 255 is one.
    all_experts = np.arange(256, dtype=np.uint8).reshape(64, 4)
    np.save(path, all_experts)
    assert counts_of(inspected(path)) == [[1] * 256]


def test_a_row_that_names_an_expert_twice(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "ids.npy"
    ids = IDS.copy()
    ids[7] = [3, 1, 3, 2]
    np.save(path, ids)
    assert command("inspect", path)[2] == (
        f"tessera inspect: {path}: row 7: topk_ids: expected different experts, got [3, 1, 3, 2]\n"
    )


def test_rows_that_all_repeat_an_id_are_no_loads(
    tmp_path: Path, command: Command, inspected: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / "ids.npy"
    twice = np.concatenate([IDS, IDS], axis=1)
    for array in (twice, np.stack([twice, twice[::-1], (twice + 1) % 16], axis=1)):
        np.save(path, array)
        err = command("inspect", path)[2]
        assert "row 0: topk_ids: expected different experts, got" in err
    # Eight experts: counts of the same tokens in each layer.
    loads = np.random.default_rng(1).multinomial(400, [1 / 8] * 8, size=(50, 4))
    for shape, num_layers in (((50, 4, 8), 4), ((100, 8), 100)):
        np.save(path, np.resize(loads, shape))
        (model,) = inspected(path)["models"]
        assert (model["top_k"], len(model["layers"])) == (0, num_layers)


def test_a_file_of_torch_that_would_run_code(tmp_path: Path, command: Command) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "records.pt"
    torch.save({"records": [Path("x")]}, path)
    code, _, err = command("inspect", path)
    assert code == 2
    assert "expected tensors, lists and numbers alone, which torch loads without running" in err
    assert len(err.splitlines()) == 1


def test_unknown_files_are_answered_with_the_forms(tmp_path: Path, command: Command) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04}.")
    err = command("align", tmp_path / "a.pkl")[2]
    assert "got a pickle, which is not read since it may run code: routing logs" in err
    assert "routed_experts" in err and "EPLB" in err


def test_tables_as_text(
    tmp_path: Path, command: Command, inspected: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / "a.csv"
    rows = [",".join(map(str, row)) for row in IDS.tolist()]
    for head in ([], ["0,1,2,3"]):
        path.write_text("\r\n".join([*head, *rows, ""]))
        assert counts_of(inspected(path)) == expected()[:1]
    indexed = [f"{place},{row}" for place, row in enumerate(rows)]
    path.write_text("\n".join([",0,1,2,3", *indexed]))
    assert counts_of(inspected(path)) == expected()[:1]
    loads = expected()
    pairs = [f"{layer};{e};{n}" for layer in range(3) for e, n in enumerate(loads[layer])]
    path.write_text("\ufeff" + "\n".join(["layer;expert;count", *pairs]), encoding="utf-8")
    assert counts_of(inspected(path)) == loads
    assert LOADS in command("align", path)[2]
    path.write_text("\n".join(",".join(map(str, one)) for one in loads))
    assert counts_of(inspected(path)) == loads
    path.write_text("layer,expert\n0,1\n0,1\n0,x\n")
    assert command("inspect", path)[2] == (
        f"tessera inspect: {path}:4: expected an integer, got 'x'\n"
    )


def test_options_that_change_nothing_are_refused(tmp_path: Path, command: Command) -> None:
    np.save(tmp_path / "ids.npy", IDS)
    for option in ("--packed", "--skip-bad-lines"):
        err = command("align", tmp_path / "ids.npy", option)[2]
        assert f"ids.npy: {option}: does nothing to ids [tokens, top_k]" in err
    assert command("align", "--packed")[2].endswith(
        "--packed: expected FILE beside it, got synthetic ids\n"
    )


def test_zero_experts_need_the_number_of_experts(tmp_path: Path, command: Command) -> None:
    np.save(tmp_path / "ids.npy", IDS)
    err = command("inspect", tmp_path / "ids.npy", "--zero-experts")[2]
    assert "ids.npy: --zero-experts: expected --experts beside it, since the file does not" in err


def test_warm_up_alone_is_not_taken_for_loads(tmp_path: Path, command: Command) -> None:
    np.save(tmp_path / "ids.npy", np.tile(np.arange(8), (100, 1)))
    err = command("inspect", tmp_path / "ids.npy")[2]
    assert "expected traffic, got nothing but repeated rows" in err


def test_parquet_without_the_extra(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and more")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    err = command("inspect", tmp_path / "a.parquet")[2]
    assert "which reads Parquet, is not installed: pip install pyarrow" in err


def test_parquet(
    tmp_path: Path, command: Command, inspected: Callable[..., dict[str, Any]]
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    layers = [layer for layer in range(3) for _ in IDS]
    rows = [row for layer in range(3) for row in MODEL[:, layer].tolist()]
    parquet.write_table(pyarrow.table({"layer": layers, "topk_ids": rows}), path)
    assert counts_of(inspected(path)) == expected()
    pairs = [(layer, e, n) for layer, row in enumerate(expected()) for e, n in enumerate(row)]
    columns = dict(
        zip(("layer", "expert", "count"), map(list, zip(*pairs, strict=True)), strict=True)
    )
    parquet.write_table(pyarrow.table(columns), path)
    assert counts_of(inspected(path)) == expected()
    path.write_bytes(b"PAR1 and more")
    assert "expected a Parquet file (" in command("inspect", path)[2]


@pytest.fixture
def measured(command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """The requests of tessera bench, none of which is measured; or the message that refuses it."""
    from tessera.cli import bench

    def run(*arguments: object) -> list[Any]:
        seen: list[Any] = []

        def stop(request: Any, name: str) -> Any:
            seen.append(request)
            raise ValueError("seen")

        monkeypatch.setattr(bench, "_measure", stop)
        code, _, err = command("bench", "--device", "cpu", *arguments)
        assert code == 2
        return seen or [err.removeprefix("tessera bench: ").rstrip("\n")]

    return run


def test_slots_without_an_expert_are_timed_by_align_block_size_alone(
    tmp_path: Path, measured: Callable[..., list[Any]]
) -> None:
    path = tmp_path / "ids.npy"
    ids = np.where(IDS == 3, -1, IDS)
    np.save(path, ids)
    (request,) = measured("--log", path, "--tokens", "256")
    assert -1 in request.windows["ids", 256]
    request, *_ = measured("--preset", "report", "--json", tmp_path / "new", "--log", path)
    assert (request.windows["ids", 300] == ids).all()
    (message,) = measured("--op", "fused_experts", "--log", path)
    assert "topk_ids: expected an expert in every slot, since not everything that is" in message
    assert message.endswith(" slots without one: --op align_block_size times them")


def test_bench_reads_several_files_as_one_model(
    tmp_path: Path, measured: Callable[..., list[Any]], command: Command
) -> None:
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    np.save(paths[0], IDS[:200])
    np.save(paths[1], IDS[200:])
    for words, num_tokens in ((["--tokens", "256"], 256), (["--op", "fused_experts"], 1)):
        (request,) = measured("--log", *paths, "--files", "ranks", *words)
        names = {shape.trace for shape in request.shapes}
        assert names == {"a and 1 more"}
        ids = request.windows["a and 1 more", num_tokens]
        rows = {tuple(row) for row in IDS.tolist()}
        assert all(tuple(row) in rows for row in ids.reshape(-1, 4).tolist())
    (request,) = measured("--log", *paths, "--files", "layers", "--tokens", "64")
    assert {shape.trace for shape in request.shapes} == {"a", "b"}
    (request,) = measured("--log", *paths, "--tokens", "64")
    assert {shape.trace for shape in request.shapes} == {"a", "b"}
    (message,) = measured("--log", *paths, "--files", "ranks", "--tokens", "512")
    assert "no windows of 512 tokens" in message
    assert measured("--files", "ranks") == ["--files: expected --log beside it"]
    np.save(paths[1], IDS[:, :2])
    ends = "b.npy: --files ranks: expected 4 ids for each token, as before, got 2\n"
    for words in (["inspect"], ["bench", "--log"]):
        assert command(*words, *paths, "--files", "ranks")[2].endswith(ends)


@pytest.mark.parametrize("words", [["--op", "fused_experts"], ["--preset", "report"], []])
def test_bench_chooses_experts_from_logits(
    words: list[str], tmp_path: Path, measured: Callable[..., list[Any]]
) -> None:
    path = tmp_path / "logits.npy"
    logits = np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)
    np.save(path, logits)
    words = [*words, *(["--json", str(tmp_path / "new")] if "report" in words else [])]
    (message,) = measured("--log", path, *words)
    assert message.startswith(f"{path}: router logits [300, 16]: expected --top-k, the number of")
    (request,) = measured("--log", path, *words, "--top-k", "3", "--experts", "16")
    shapes = [shape for shape in request.shapes if shape.trace]
    assert {(shape.num_experts, shape.top_k) for shape in shapes} == {(16, 3)}
    ids = next(iter(request.windows.values())).reshape(-1, 3)
    chosen = {tuple(sorted(row)) for row in np.argsort(-logits, axis=1)[:, :3].tolist()}
    assert {tuple(sorted(row)) for row in ids.tolist()} <= chosen


def test_bench_takes_the_reading_options_for_every_op(
    tmp_path: Path, measured: Callable[..., list[Any]]
) -> None:
    path = tmp_path / "log.jsonl"
    lines = [f'{{"layer": {layer}, "topk_ids": {row.tolist()}}}' for layer in (0, 3) for row in IDS]
    path.write_text("\n".join([*lines, "no json", ""]))
    for words in ([], ["--op", "fused_experts"]):
        assert "log.jsonl:601: " in measured("--log", path, *words)[0]
        options = ["--skip-bad-lines", "--layer", "3", "--experts", "32", *words]
        (request,) = measured("--log", path, *options)
        assert {shape.num_experts for shape in request.shapes} == {32}
        assert len({shape.trace for shape in request.shapes}) == 1
    assert measured("--op", "fused_experts", "--top-k", "2") == [
        "--op fused_experts: expected no --top-k beside it"
    ]


def test_loads_of_ranks_are_added_up(
    tmp_path: Path, command: Command, inspected: Callable[..., dict[str, Any]]
) -> None:
    paths = [tmp_path / f"rank{rank}.jsonl" for rank in range(2)]
    for rank, path in enumerate(paths):
        path.write_text(json.dumps({"layer": 3, "tokens_per_expert": [4, rank, 0, 9]}) + "\n")
    (model,) = inspected(*paths, "--files", "ranks")["models"]
    assert [(one["layer"], one["expert_counts"]) for one in model["layers"]] == [(3, [8, 1, 0, 18])]
    (model,) = inspected(*paths, "--files", "layers")["models"]
    assert [one["layer"] for one in model["layers"]] == ["rank0 layer 3", "rank1 layer 3"]
    paths[1].write_text(json.dumps({"layer": 3, "tokens_per_expert": [4, 1]}) + "\n")
    assert (
        "rank1.jsonl: --files ranks: expected the loads of 4 experts, as before, got 2"
        in (command("inspect", *paths, "--files", "ranks")[2])
    )
    np.save(paths[1].with_suffix(".npy"), IDS)
    err = command("inspect", paths[0], paths[1].with_suffix(".npy"), "--files", "ranks")[2]
    assert "rank0.jsonl: --files ranks: expected ids of tokens, got loads" in err


def test_files_of_one_name_as_layers(
    tmp_path: Path, inspected: Callable[..., dict[str, Any]]
) -> None:
    paths = [tmp_path / folder / "ids.npy" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        np.save(path, IDS)
    (model,) = inspected(*paths, "--files", "layers")["models"]
    assert [one["layer"] for one in model["layers"]] == [str(path) for path in paths]


def test_router_trace_of_megatron(
    tmp_path: Path, command: Command, inspected: Callable[..., dict[str, Any]]
) -> None:
    paths = [tmp_path / f"router_trace_rank{rank}.jsonl" for rank in range(2)]
    for rank, path in enumerate(paths):
        with path.open("w") as file:
            for step, rows in enumerate(np.split(IDS, 3)):
                record = {"step": step, "stage": "pre_dispatch", "block": "decoder", "layer": 1}
                record |= {"rank": rank, "num_tokens": 100, "topk": 4, "top_indices": rows.tolist()}
                for extra in ({}, {"block": "mtp", "mtp_idx": 0}):
                    file.write(json.dumps(record | extra) + "\n")
    counts = np.bincount(IDS.reshape(-1), minlength=16)
    (model,) = inspected(paths[0])["models"]
    layers = ["mtp 0 layer 1", 1]
    assert {one["layer"]: one["expert_counts"] for one in model["layers"]} == dict.fromkeys(
        layers, counts.tolist()
    )
    (model,) = inspected(*paths, "--files", "ranks", "--layer", "mtp 0 layer 1")["models"]
    assert [one["expert_counts"] for one in model["layers"]] == [(2 * counts).tolist()]
    document = json.loads(command("align", paths[1], "--json", "--layer", 1)[1])
    assert [one["expert_counts"] for one in document["workloads"]] == [counts.tolist()]
