"""Whole inspections: recorded logs, several logs, NumPy files, and what is refused."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tessera
from recorded_logs import OLMOE, QWEN, recorded
from tessera.routing_log import (
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_LINE_BYTES,
    MAX_TOP_K,
    read_routing_log,
)
from tessera.tools.inspection import Document, inspect_logs
from tessera.tools.inspection.advice import COST_MODEL
from tessera.tools.inspection.document import BATCH_SIZES, BLOCK_SIZES, RANK_COUNTS
from tessera.tools.inspection.logs import MAX_TOTAL_EXPERTS
from tessera.tools.inspection.repeated import SHORTEST_RUN
from tessera.tools.routing_files import Options

BEYOND = (
    "topk_ids: expected integers in [0, 4), got 4: --experts 5 if they are experts, --zero-experts "
    "if ids from 4 on stand for no expert"
)
ROOT = Path(__file__).resolve().parents[2]


def write_log(path: Path, meta: dict[str, Any], rows: dict[int, list[list[int]]]) -> Path:
    lines = [{"type": "meta"} | meta] + [
        {"type": "route", "layer": layer, "topk_ids": ids}
        for layer, layer_rows in rows.items()
        for ids in layer_rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def refused(*paths: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        inspect_logs(paths, Options(**options))
    return str(caught.value)


def test_recorded_logs() -> None:
    found = inspect_logs([recorded(name) for name in (OLMOE, *QWEN)])
    assert found["version"] == tessera.version()
    assert [log["num_experts_source"] for log in found["logs"]] == [
        "log",
        "largest id + 1",
        "largest id + 1",
    ]
    olmoe, qwen = found["models"]
    assert (olmoe["name"], olmoe["num_experts"], olmoe["top_k"]) == (
        "allenai/OLMoE-1B-7B-0924",
        64,
        8,
    )
    assert (qwen["name"], qwen["num_experts"], qwen["top_k"]) == (
        "Qwen/Qwen1.5-MoE-A2.7B-Chat",
        60,
        4,
    )
    (layer,) = olmoe["layers"]
    assert (layer["num_tokens"], layer["num_repeated"]) == (4471, 2048)
    assert layer["repeated"] == [
        {"first_token": 0, "num_tokens": 2048, "topk_ids": [7, 6, 4, 5, 1, 0, 2, 3]}
    ]
    assert layer["load"]["hot_experts"][0]["expert"] == 6
    assert layer["expert_counts"][6] == 4889 - 2048
    assert [(one["log"], one["layer"]) for one in qwen["layers"]] == [(1, 0), (2, 12)]
    for one in qwen["layers"]:
        assert (one["num_tokens"], one["num_repeated"]) == (4357, 8448)
        assert one["load"]["hot_experts"] == []
        with_repeated = one["load_with_repeated"]
        assert with_repeated is not None
        assert [hot["expert"] for hot in with_repeated["hot_experts"]] == sorted(
            one["repeated"][0]["topk_ids"],
            key=lambda expert, one=one: -one["expert_counts"][expert],  # type: ignore[misc]
        )
        assert [ranks["num_ranks"] for ranks in one["ranks"]] == list(RANK_COUNTS[:-1])


def test_recorded_blocks_are_those_of_the_op() -> None:
    """The first windows of a log, through the op itself."""
    path = recorded(OLMOE)
    (model,) = inspect_logs([path])["models"]
    topk_ids = read_routing_log(path).layers[0][2048:]
    for batch in model["layers"][0]["batches"][6:]:
        if batch["extrapolated"]:
            break
        windows = [
            topk_ids[start : start + batch["batch_size"]]
            for start in range(0, len(topk_ids) - batch["batch_size"] + 1, batch["batch_size"])
        ]
        assert len(windows) == batch["num_batches"]
        for blocks in batch["blocks"]:
            size = blocks["block_size"]
            slots = sum(
                int(
                    tessera.align_block_size(
                        window, block_size=size, num_experts=64
                    ).num_tokens_post_pad[0]
                )
                for window in windows
            )
            assert blocks["num_blocks"] == pytest.approx(slots / size / len(windows))
            padding = slots - 8 * batch["batch_size"] * len(windows)
            assert blocks["padding_share"] == pytest.approx(padding / slots)


def test_kept_repeated_rows_are_traffic() -> None:
    (model,) = inspect_logs([recorded(OLMOE)], keep_repeated=True)["models"]
    (layer,) = model["layers"]
    assert (layer["num_tokens"], layer["num_repeated"]) == (6519, 0)
    assert layer["expert_counts"][6] == 4889


def test_layers_of_one_model_have_the_same_experts(tmp_path: Path) -> None:
    first = write_log(tmp_path / "a.jsonl", {"model_id": "m"}, {0: [[1, 70]], 2: [[0, 1]]})
    second = write_log(tmp_path / "b.jsonl", {"model_id": "m"}, {1: [[5, 2]]})
    other = write_log(tmp_path / "c.jsonl", {}, {1: [[5, 2]]})
    told = write_log(tmp_path / "d.jsonl", {"model_id": "m", "num_experts": 8}, {1: [[5, 2]]})
    found = inspect_logs([first, second, other, told])
    assert [
        (model["name"], model["num_experts"], [layer["log"] for layer in model["layers"]])
        for model in found["models"]
    ] == [("m", 71, [0, 0, 1]), ("c.jsonl", 6, [2]), ("m", 8, [3])]
    counts = found["models"][0]["layers"][0]["expert_counts"]
    assert (len(counts), counts[70]) == (71, 1)
    given = inspect_logs([first, other], Options(num_experts=80))
    assert [log["num_experts_source"] for log in given["logs"]] == ["--experts"] * 2
    assert [model["num_experts"] for model in given["models"]] == [80, 80]


def test_files_of_one_name_without_a_model_are_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "x" / "ids.npy", tmp_path / "y" / "ids.npy"]
    for path, largest in zip(paths, (3, 9), strict=True):
        path.parent.mkdir()
        np.save(path, np.array([[0, largest]]))
    models = inspect_logs(paths)["models"]
    assert [(one["name"], one["num_experts"]) for one in models] == [
        ("x/ids.npy", 4),
        ("y/ids.npy", 10),
    ]


def test_layers_of_other_top_k_are_other_models(tmp_path: Path) -> None:
    log = write_log(tmp_path / "a.jsonl", {"model_id": "m"}, {0: [[1, 2]], 1: [[3]]})
    assert [model["top_k"] for model in inspect_logs([log])["models"]] == [2, 1]


def figures(document: Document) -> dict[str, Any]:
    layer: dict[str, Any] = dict(document["models"][0]["layers"][0])
    return {name: layer[name] for name in layer if name not in ("log", "layer")}


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.uint64, ">i4"])
def test_numpy_files_give_what_a_log_gives(tmp_path: Path, dtype: Any) -> None:
    random = np.random.default_rng(0)
    ids = random.permuted(np.tile(np.arange(12), (40_000, 1)), axis=1)[:, :3].astype(dtype)
    log = write_log(tmp_path / "ids.jsonl", {"num_experts": 12}, {4: ids.tolist()})
    np.savez_compressed(tmp_path / "ids.npz", topk_ids=ids, num_experts=12)
    np.save(tmp_path / "ids.npy", ids)
    expected = figures(inspect_logs([log]))
    for name in ("ids.npz", "ids.npy"):
        found = inspect_logs([tmp_path / name])
        assert figures(found) == expected
        (told,) = found["logs"]
        assert (told["model_id"], told["num_experts"], told["num_lines"]) == (None, 12, 40_000)
        assert found["models"][0]["layers"][0]["layer"] is None


def test_invalid_ids_of_numpy_files_are_counted(tmp_path: Path) -> None:
    ids = np.array([[0, 1], [-1, 5], [2, 2**64 - 1]], np.object_)
    np.save(tmp_path / "ids.npy", np.where(ids == -1, 2**63, ids).astype(np.uint64))
    found = inspect_logs([tmp_path / "ids.npy"], Options(num_experts=5))
    (layer,) = found["models"][0]["layers"]
    assert (layer["num_invalid_ids"], layer["num_unused"]) == (2, 1)
    assert layer["expert_counts"] == [1, 1, 1, 0, 0]


def test_numpy_files_that_are_refused(tmp_path: Path) -> None:
    def npy(array: Any) -> str:
        np.save(tmp_path / "x.npy", array)
        return refused(tmp_path / "x.npy").removeprefix(f"{tmp_path}/x.npy: ")

    def npz(**arrays: Any) -> str:
        np.savez(tmp_path / "x.npz", **arrays)
        return refused(tmp_path / "x.npz").removeprefix(f"{tmp_path}/x.npz: ")

    shape = (
        "topk_ids: expected [tokens, top_k] or [tokens, layers, top_k], at least one of each, got "
    )
    assert npy(np.zeros((0, 2), int)) == shape + "[0, 2]"
    assert npz(topk_ids=np.arange(1025)[None]) == (
        "top_k: expected 1 to 1024 ids for each token, got 1025"
    )
    assert npy(np.zeros((2, 2))).startswith("no routing: every row is zeros, as of a dense layer")
    assert "an array of Python objects, which only unpickling would read" in npy(np.array([[{}]]))
    assert npy(np.ones((2, 3), int, order="F")) == (
        "row 0: topk_ids: expected different experts, got [1, 1, 1]; tessera inspect --loads reads "
        "loads of experts"
    )
    assert npy(np.array([[65536]])).startswith(
        "row 0: topk_ids: expected ids below 65536, got 65536: give --experts for "
    )
    assert npy(np.array([[-1]])) == "no routing: every row is -1, which is no expert"
    negative = "row 0: topk_ids: expected ids of experts, or -1 for none, got -2"
    assert npy(np.array([[-2]])) == negative
    assert npz(topk_ids=[["a"]]) == "topk_ids: expected integers, got <U1"
    one = "num_experts: expected one integer, got "
    assert npz(topk_ids=[[1]], num_experts=[1, 2]) == one + "[2] of int64"
    assert npz(topk_ids=[[1]], num_experts=0) == (
        "num_experts: expected an integer in [1, 65536], got 0"
    )
    assert npz(topk_ids=[[9]], num_experts=4) == (
        "topk_ids: expected ids in [0, 4), got 1 of 1 outside: the number of experts is too small, "
        "or these are no ids"
    )
    layers = {"layer0": [[0, 1], [1, 2]], "layer1": [[9]], "num_experts": 4}
    assert npz(**layers) == "layer 1: topk_ids: expected ids in [0, 4), got none"
    assert refused(tmp_path / "x.npy", num_experts=1).endswith(negative)
    assert npz(topk_ids=[[0, 1, 2]], num_experts=2) == (
        "topk_ids: expected at most as many ids for each token as experts, 2, got 3"
    )


def test_broken_numpy_files(tmp_path: Path) -> None:
    np.save(tmp_path / "cut.npy", np.arange(10, dtype=np.int32).reshape(5, 2))
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-1])
    assert refused(tmp_path / "cut.npy").endswith(
        "cut.npy: topk_ids: expected more elements, got the file's end"
    )
    (tmp_path / "not.npy").write_bytes(b"hello")
    assert "got content that begins with b'hello', not as an .npy begins: " in (
        refused(tmp_path / "not.npy")
    )
    (tmp_path / "head.npy").write_bytes(whole[:20])
    assert refused(tmp_path / "head.npy").endswith(
        "expected a NumPy array, got a header that cannot be read"
    )
    (tmp_path / "not.npz").write_bytes(b"PK not")
    assert "not as an .npz begins: " in refused(tmp_path / "not.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4 not")
    assert "bad.npz: expected a whole file (" in refused(tmp_path / "bad.npz")
    with zipfile.ZipFile(tmp_path / "cut.npz", "w") as archive:
        archive.writestr("topk_ids.npy", whole[:-1])
    assert refused(tmp_path / "cut.npz").endswith("expected more elements, got the file's end")


def saved_ids() -> tuple[bytes, bytes]:
    """The bytes of an .npy and an .npz."""
    npy, npz = io.BytesIO(), io.BytesIO()
    ids = np.arange(60, dtype=np.int32).reshape(-1, 2) % 7
    np.save(npy, ids)
    np.savez_compressed(npz, topk_ids=ids, num_experts=7)
    return npy.getvalue(), npz.getvalue()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**4), st.integers(0, 255), st.booleans())
def test_any_bytes_are_ids_or_an_error(place: int, byte: int, in_npz: bool) -> None:
    content = bytearray(saved_ids()[in_npz])
    content[place % len(content)] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ids.npz" if in_npz else "ids.npy")
        path.write_bytes(content)
        try:
            found = inspect_logs([path])
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
        else:
            assert found["models"][0]["layers"]


def test_logs_that_are_refused(tmp_path: Path) -> None:
    warm_up = write_log(tmp_path / "a.jsonl", {}, {0: [[1]], 5: [[1, 2]] * 64})
    assert refused(warm_up) == (
        f"{warm_up}: layer 5: expected traffic, got nothing but repeated rows: --keep-repeated "
        "counts them"
    )
    assert len(inspect_logs([warm_up], keep_repeated=True)["models"]) == 2
    (tmp_path / "a.csv").write_text("a,b\n")
    assert "a.csv: expected one of these forms, got text with commas, in whose first line " in (
        refused(tmp_path / "a.csv")
    )
    assert refused(tmp_path / "none.jsonl").endswith("none.jsonl: No such file or directory")
    assert refused(tmp_path / "none.npz").endswith("none.npz: No such file or directory")
    rows = {layer: [[1]] for layer in range(9)}
    wide = write_log(tmp_path / "wide.jsonl", {"num_experts": 65536}, rows)
    assert refused(wide, wide).endswith(
        "layers: expected at most 1048576 experts in all layers of all logs together, got more"
    )


def test_skipped_lines_are_in_the_document(tmp_path: Path) -> None:
    log = write_log(tmp_path / "a.jsonl", {"num_experts": 4}, {0: [[1], [4], [2]]})
    assert refused(log) == f"{log}:3: {BEYOND}"
    found = inspect_logs([log], Options(skip_bad_lines=True))
    (told,) = found["logs"]
    assert (told["num_lines"], told["num_skipped"], told["skipped"]) == (
        4,
        1,
        [f"{log}:3: {BEYOND}"],
    )
    assert found["models"][0]["layers"][0]["expert_counts"] == [0, 1, 1, 0]


def test_progress_covers_every_file(tmp_path: Path) -> None:
    log = write_log(tmp_path / "a.jsonl", {}, {0: [[1]] * 3})
    np.save(tmp_path / "b.npy", np.arange(10, dtype=np.int32).reshape(5, 2))
    read: list[int] = []
    paths = [log, tmp_path / "b.npy"]
    inspect_logs(paths, progress=read.append)
    assert sum(read) == sum(path.stat().st_size for path in paths)


def test_every_size_is_in_the_document(tmp_path: Path) -> None:
    log = write_log(tmp_path / "a.jsonl", {"num_experts": 100}, {0: [[1, 2]] * 3})
    found = inspect_logs([log])
    (model,) = found["models"]
    (layer,) = model["layers"]
    assert [batch["batch_size"] for batch in layer["batches"]] == list(BATCH_SIZES)
    assert [one["batch_size"] for one in model["advice"]] == list(BATCH_SIZES)
    assert [ranks["num_ranks"] for ranks in layer["ranks"]] == list(RANK_COUNTS)
    for one in model["advice"]:
        assert [cost["block_size"] for cost in one["costs"]] == list(BLOCK_SIZES)
    assert json.loads(json.dumps(found)) == found


def test_the_page_has_the_figures_of_the_program() -> None:
    page = (ROOT / "docs/inspect.md").read_text(encoding="utf-8")
    assert COST_MODEL["formula"] in page
    for name, value in COST_MODEL["parameters"].items():
        assert f"\n{name} = {value:g}\n" in page
    for name, limit in (
        ("experts", f"{MAX_EXPERTS:,}, and {MAX_TOTAL_EXPERTS:,} over all layers of all logs"),
        ("layers in a log", f"{MAX_LAYERS:,}"),
        ("ids per token", f"{MAX_TOP_K:,}"),
        ("bytes in a line", f"{MAX_LINE_BYTES:,}"),
    ):
        assert f"| {name} | {limit} |" in page
    assert f"Runs of {SHORTEST_RUN} or more equal consecutive rows" in page
