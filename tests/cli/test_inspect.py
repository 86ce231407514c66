"""`tessera inspect`: what it shows, what it refuses, and that it writes all or nothing."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessera
from recorded_logs import OLMOE, QWEN, recorded
from tessera.cli import progress_bars
from tessera.cli.main import main
from tessera.contract import synthetic_topk_ids

META = '{"type": "meta", "model_id": "a [b] model", "num_experts": 4}\n'
ROUTE = '{"type": "route", "layer": %d, "topk_ids": %s}\n'


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two layers: in layer 0 expert 1 is hot and expert 2 dead."""
    path = tmp_path / "log.jsonl"
    rows = [ROUTE % (0, [1, 3]), ROUTE % (0, [1, 0]), ROUTE % (5, [2, 3]), ROUTE % (5, [0, 1])]
    path.write_text(META + "".join(rows * 4))
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    assert main(["inspect", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line.removeprefix("tessera inspect: ")


def test_summary(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = shown(capsys, log)
    lines = out.splitlines()
    assert lines[0] == "a [b] model: 4 experts, top 2, 2 layers"
    assert max(map(len, lines)) <= 80
    head = next(index for index, line in enumerate(lines) if line.startswith("layer tokens"))
    first, second = (line.split() for line in lines[head + 1 : head + 3])
    assert first == ["0", "8", "1.50", "0.38", "2.00", "▄█", "▄", "1", "(2.0)", "1"]
    assert second == ["5", "8", "2.00", "0.00", "1.00", "████", "none", "0"]
    assert "Layer 0: dead experts 2." in lines
    # 2 tokens, 3 and 4 experts: 3.5 blocks of 16 for 4 ids.
    row = next(line for line in lines if line.split()[:2] == ["2", "3.5"])
    assert " ".join(row.split()) == "2 3.5 85.7 *92.9 96.4 98.2 99.1 99.6 16 3.5"
    assert any(line.split()[:3] == ["~65,536", "3.5", "0.0"] for line in lines)
    assert "A row is the mean over the full batches of that size:" in " ".join(out.split())
    head = next(index for index, line in enumerate(lines) if line.startswith("ranks"))
    assert lines[head].split() == ["ranks", "contiguous", "balanced", "in", "hindsight"]
    assert [line.split() for line in lines[head + 1 : head + 3]] == [
        ["2", "1.25", "1.00", "1.00"],
        ["4", "1.50", "1.50", "1.50"],
    ]
    words = " ".join(out.split())
    assert (
        "Hot experts: In layer 0, expert 1 takes 50% of all pairs of a token and an expert, 2.00× "
        "the mean. In layer 5, no expert takes twice the mean load;" in words
    )
    assert "Block size: Use block size 16 for batches of 1 to " in words
    assert "num_blocks(B) * max(B, least_block_rows)" in words


def test_summary_of_recorded_logs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = shown(capsys, recorded(QWEN[1]))
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    assert "the number of experts is not given: 60 is the largest id + 1" in words
    assert (
        "Layer 12: 8,448 repeated rows left out as warm-up (8,448 from token 0 on are "
        "13, 15, 56, 34). With them max/mean would be 10.23." in words
    )
    assert "Hot experts: No expert takes twice the mean load; the most loaded, expert 23," in words


def ranks_table(out: str) -> list[list[str]]:
    """The rows, and the notes under them."""
    part = out.split("Expert parallelism, largest over mean load of the ranks\n")[1]
    table, _, reading = part.split("\n\n")[0].partition("\nEvery placement")
    return [line.split() for line in table.splitlines()[1:]] + [
        ["Every placement", *reading.split()]
    ]


def test_recorded_ranks_are_all_judged_on_the_second_half(
    capsys: pytest.CaptureFixture[str],
) -> None:
    *rows, reading = ranks_table(shown(capsys, recorded(OLMOE)))
    assert [row[0] for row in rows] == ["2", "4", "8", "16", "32", "64"]
    assert rows[-1] == ["64", "3.64", "3.64", "3.64"]
    assert " ".join(reading).startswith(
        "Every placement is judged on the second half of the tokens, 2,423 of 4,471. Balanced: by "
    )


def test_ranks_of_a_log_whose_halves_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # By the first half 0 and 2 share a rank, and by the second they take everything.
    ids = np.array([0] * 4 + [1] * 3 + [3] + [0] * 4 + [2] * 4)
    np.save(tmp_path / "ids.npy", ids[:, None])
    out = shown(capsys, tmp_path / "ids.npy")
    *rows, reading = ranks_table(out)
    assert rows == [["2", "1.00", "2.00", "1.00"], ["4", "2.00", "2.00", "2.00"]]
    assert " ".join(reading).startswith(
        "Every placement is judged on the second half of the tokens, 8 of 16."
    )
    assert "Balanced placement is worse than contiguous on 2 ranks. On all tokens it is 2.00×" in (
        " ".join(out.split())
    )


def test_ranks_of_one_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "ids.npy", np.array([[0, 1]]))
    out = shown(capsys, tmp_path / "ids.npy", "--experts", 4)
    *rows, reading = ranks_table(out)
    assert rows == [["2", "2.00", "1.00"], ["4", "2.00", "2.00"]]
    assert " ".join(reading) == (
        "Every placement is judged on all tokens, 1. In hindsight: balanced by the loads of the "
        "tokens that judge. Balanced: too few tokens to hold out."
    )
    assert (
        "with one balanced in hindsight, by the same tokens. There are too few tokens to hold"
        in (" ".join(out.split()))
    )


def test_json(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(shown(capsys, log, "--json", "--experts", 6))
    (model,) = document["models"]
    assert (model["num_experts"], document["logs"][0]["num_experts_source"]) == (6, "--experts")
    assert [layer["expert_counts"] for layer in model["layers"]] == [
        [4, 8, 0, 4, 0, 0],
        [4, 4, 4, 4, 0, 0],
    ]


def test_bad_lines(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with log.open("a") as file:
        file.write(ROUTE % (0, [1, 4]) + '{"type": "rou')
    message = (
        f"{log}:18: topk_ids: expected integers in [0, 4), got 4: --experts 5 if they are experts, "
        "--zero-experts if ids from 4 on stand for no expert"
    )
    assert refused(capsys, log) == message
    words = " ".join(shown(capsys, log, "--skip-bad-lines").split())
    assert f"2 bad lines skipped, the first of them: {message}" in words
    assert "it may have been cut off" in words


def test_numpy_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "ids.npy", np.array([[0, -1], [0, 2]]))
    out = shown(capsys, tmp_path / "ids.npy")
    assert out.startswith("ids.npy: 3 experts, top 2, 1 layer\n")
    assert "1 slot without an expert." in out
    np.save(tmp_path / "ids.npy", np.array([[0, 1], [0, 2]]))
    out = shown(capsys, tmp_path / "ids.npy", "--experts", 2)
    assert "1 id outside the experts left out." in out


def test_a_bar_for_large_files(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take stderr for a terminal
    tessera.version()  # to load the library shows that it is being loaded
    assert main(["inspect", str(log), "--json"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress_bars, "_BYTES_WORTH_A_BAR", 1)
    assert main(["inspect", str(log), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "reading" in err
    json.loads(out)


def test_report_and_pictures(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, pictures = tmp_path / "report.html", tmp_path / "pictures"
    shown(capsys, log, "--html", report, "--pictures", pictures)
    assert "a [b] model" in report.read_text()
    assert any(path.suffix == ".svg" for path in pictures.iterdir())
    report.write_text("mine")
    assert refused(capsys, log, "--html", report) == (
        f"{report}: exists already; --force overwrites it"
    )
    assert refused(capsys, log, "--pictures", pictures) == (
        f"{pictures}: exists already, and is not empty; --force overwrites it"
    )
    assert report.read_text() == "mine"
    shown(capsys, log, "--html", report, "--pictures", pictures, "--force")
    assert "a [b] model" in report.read_text()


def test_outputs_are_refused_before_the_log_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = tmp_path / "none.jsonl"
    (tmp_path / "file").touch()
    assert refused(capsys, none, "--html", tmp_path / "file") == (
        f"{tmp_path}/file: exists already; --force overwrites it"
    )
    assert refused(capsys, none, "--html", tmp_path, "--force") == (
        f"--html: expected a file, got the folder {tmp_path}"
    )
    assert refused(capsys, none, "--html", tmp_path / "no" / "a.html") == (
        f"--html: there is no folder {tmp_path}/no"
    )
    assert refused(capsys, none, "--pictures", tmp_path / "file", "--force") == (
        f"--pictures: expected a folder, got the file {tmp_path}/file"
    )
    assert refused(capsys, none, "--html", tmp_path / "a.html") == (
        f"{none}: No such file or directory"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("experts", ["0", "x", "65537"])
def test_experts_out_of_range(experts: str, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(log), "--experts", experts])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"tessera inspect: argument --experts: expected an integer in [1, 65536], got '{experts}'\n"
    )


def test_a_log_whose_name_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2")
    path = tmp_path / os.fsdecode(b"a\xff.npy")
    np.save(path, np.arange(8, dtype=np.int32).reshape(4, 2))
    html, pictures = tmp_path / "a.html", tmp_path / "pictures"
    assert main(["inspect", str(path), "--html", str(html), "--pictures", str(pictures)]) == 0
    assert "a?.npy" in html.read_text()
    assert sorted(pictures.iterdir())


def test_many_layers_are_told_by_means_and_the_most_uneven(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.stack([np.argsort(np.random.default_rng(i).random((64, 8))) for i in range(20)], 1)
    ids = ids[:, :, :2].copy()
    ids[:, 11] = [0, 1]
    ids[::2, 11] = [1, 0]
    np.save(tmp_path / "ids.npy", ids)
    axes = ["--axes", "tokens,layers,top_k"]
    out = shown(capsys, tmp_path / "ids.npy", "--keep-repeated", *axes)
    rows = [line.split() for line in out.partition("The means")[0].splitlines() if line]
    rows = rows[[row[0] for row in rows].index("layer") + 1 :]
    assert rows[0][0] == "mean"
    assert len(rows) == 1 + 8
    assert "11" in [row[0] for row in rows]
    assert "The means of all 20 layers, and the 8 most uneven;" in out


def test_the_same_layers_of_several_files_are_told_with_their_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / folder / "log.jsonl" for folder in ("old", "new")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(META + ROUTE % (0, [1, 3]) * 3 + ROUTE % (5, [2, 3]) * 3)
    out = shown(capsys, *paths)
    lines = out.splitlines()
    assert lines[0] == "a [b] model: 4 experts, top 2, 4 layers"
    places = [lines.index(name) for name in ("old/log.jsonl", "new/log.jsonl")]
    for place in places:
        assert [line.split()[0] for line in lines[place + 1 : place + 4]] == ["layer", "0", "5"]
    assert "Layer 0 of old/log.jsonl: dead experts 0, 2." in lines
    # One advice over the layers of both files.
    (model,) = json.loads(shown(capsys, *paths, "--json"))["models"]
    (alone,) = json.loads(shown(capsys, paths[0], "--json"))["models"]
    assert model["advice"] == alone["advice"]
    assert [layer["log"] for layer in model["layers"]] == [0, 0, 1, 1]


def test_advice_is_over_the_layers_of_all_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name for name in ("a.npy", "b.npy")]
    ids = np.argsort(np.random.default_rng(1).random((256, 16)))[:, :2]
    np.save(paths[0], ids)

    def model(*arguments: object) -> Any:
        document = json.loads(shown(capsys, *paths, "--json", "--experts", "16", *arguments))
        (one,) = document["models"]
        return one

    np.save(paths[1], (ids[::-1] + 1) % 16)
    layers = model("--files", "layers")
    assert [layer["layer"] for layer in layers["layers"]] == ["a", "b"]
    assert len(layers["advice"]) == 17
    ranks = model("--files", "ranks")
    (layer,) = ranks["layers"]
    assert (layer["num_tokens"], layer["drift"]) == (512, None)
    assert ranks["name"] == "a.npy and 1 more"
    out = shown(capsys, *paths, "--files", "ranks")
    assert "ranks of one model, file after file, so without drift over time:" in out
    assert "a.npy and 1 more: the number of experts is not given: 16 is" in " ".join(out.split())


def test_tables_give_a_layer_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = synthetic_topk_ids(600, 16, 4, seed=1)
    np.save(tmp_path / "a.npy", ids)
    np.savez(tmp_path / "b.npz", layer3=ids, layer4=ids[::-1])
    for file, names in (("a.npy", ["-"]), ("b.npz", ["3", "4"])):
        out = shown(capsys, tmp_path / file)
        load = re.search(r"^layer tokens(.*\n)+?(?=Entropy)", out, re.MULTILINE)
        drift = re.search(r"^layer +neighbours(.*\n)+?(?=Distances)", out, re.MULTILINE)
        assert load and drift
        for table in (load, drift):
            rows = [line.split()[0] for line in table[0].splitlines()[1:]]
            assert sorted(name for name in rows if name != "mean") == names


def test_a_pipe_is_called_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    os.write(write, b'{"layer": 0, "topk_ids": [1, 2]}\n' * 3)
    os.close(write)
    pipe = f"/dev/fd/{read}"
    np.save(tmp_path / "a.npy", [[1, 2], [0, 1]])
    out = shown(capsys, tmp_path / "a.npy", pipe, "--compare")
    assert f"Second: {pipe}, 3 experts\n" in out
    os.close(read)


def test_a_long_name_of_a_layer_is_whole_and_takes_no_room_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"model.layers.{number}.mlp.experts" for number in range(3)]
    lines = [
        json.dumps({"layer": name, "topk_ids": row})
        for name in (*names, 3)
        for row in synthetic_topk_ids(100, 64, 6, zipf=True, seed=1).tolist()
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    out = shown(capsys, tmp_path / "a.jsonl", "--experts", 65)
    (table,) = re.findall(r"^ *layer tokens .*\n(?:.+\n)+?(?=Entropy)", out, re.MULTILINE)
    head, *rows = table.splitlines()
    words = "layer tokens entropy Gini max/mean load by expert hot (x mean) dead"
    assert " ".join(head.split()) == words
    width = len(head[: head.index(" tokens")])
    folded = "".join(row[:width].strip() for row in rows)
    assert folded == "".join(names) + "3"
    assert [row[width:].split()[0] for row in rows if row[width:].strip()] == ["100"] * 4
    assert "\nmodel.layers.0.mlp.experts: dead experts " in out
    assert "\nLayer 3: dead experts " in out


def test_a_model_of_48_layers_takes_two_screens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = [synthetic_topk_ids(2000, 128, 8, zipf=True, seed=seed) for seed in range(48)]
    np.savez(tmp_path / "a.npz", routed_experts=np.stack(layers, axis=1))
    out = shown(capsys, tmp_path / "a.npz", "--experts", 128)
    assert len(out.splitlines()) <= 115


def test_rows_of_one_expert_are_summed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"0,{expert},{10 + expert}" for expert in range(8)]
    (tmp_path / "a.csv").write_text("\n".join(["layer,expert,count", *rows, *rows[:3]]))
    out = " ".join(shown(capsys, tmp_path / "a.csv").split())
    assert "a.csv: the loads are sums over 11 rows " in out
    (tmp_path / "a.csv").write_text("\n".join(["layer,expert,count", *rows]))
    assert "sums over" not in " ".join(shown(capsys, tmp_path / "a.csv").split())
