"""Files that are hardly routing, and options that hardly apply: refused, or read with a note."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tessera.cli.main import main
from tessera.contract import synthetic_topk_ids

IDS = synthetic_topk_ids(300, 64, 8, seed=1)

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return code, " ".join(out.split()), err

    return run


def written(path: Path, array: npt.NDArray[np.integer]) -> Path:
    if path.suffix == ".csv":
        np.savetxt(path, array, fmt="%d", delimiter=",")
    else:
        np.save(path, array)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_a_negative_number_is_no_id(suffix: str, tmp_path: Path, command: Command) -> None:
    differences = np.random.default_rng(0).integers(-5000, 5000, (4, 64))
    path = written(tmp_path / f"a{suffix}", differences)
    ids = IDS.astype(np.int64)
    ids[7, 2] = -2
    other = written(tmp_path / f"b{suffix}", ids)
    for words in (["inspect"], ["align"], ["bench", "--log"]):
        code, out, err = command(*words, path)
        assert (code, out) == (2, "")
        assert "logits" in err  # of which as many are negative as of these
        message = f"{other}: row 7: topk_ids: expected ids of experts, or -1 for none, got -2\n"
        assert message in command(*words, other)[2]


def test_half_of_the_ids_outside_the_experts(tmp_path: Path, command: Command) -> None:
    path = written(tmp_path / "a.npy", IDS)
    code, out, err = command("inspect", path, "--experts", 24)
    assert (code, out) == (2, "")
    num_outside = int((IDS >= 24).sum())
    assert 2 * num_outside >= IDS.size
    assert f"expected ids in [0, 24), got {num_outside:,} of 2,400 outside: the number of " in err
    code, out, _ = command("inspect", path, "--experts", 40)
    assert code == 0 and f"{int((IDS >= 40).sum())} ids outside the experts left out." in out


LOADS = np.stack([np.random.default_rng(seed).permutation(1000)[:8] for seed in range(4)])
REPEATED = np.where(np.arange(8) == 5, LOADS[:, 3:4], LOADS)
AS_LOADS = "8 experts, loads without tokens, 4 layers"


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_ids_that_may_be_loads(suffix: str, tmp_path: Path, command: Command) -> None:
    path = written(tmp_path / f"a{suffix}", LOADS)
    note = (
        "[4, 8] is read as ids [tokens, top_k], but may be loads [layers, experts]: "
        "tessera inspect --loads reads loads, --experts says ids"
    )
    for name in ("inspect", "align"):
        assert note in command(name, path)[1]
        assert "may be loads" not in command(name, path, "--experts", 1000)[1]
    np.save(tmp_path / "floats.npy", LOADS.astype(np.float32))
    assert note in command("inspect", tmp_path / "floats.npy")[1]
    long = written(tmp_path / f"b{suffix}", IDS)
    assert "may be loads" not in command("inspect", long)[1]
    assert AS_LOADS in command("inspect", path, "--loads")[1]
    np.savez(tmp_path / "c.npz", logical_count=LOADS)
    assert AS_LOADS in command("inspect", tmp_path / "c.npz")[1]


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_numbers_that_are_no_ids_may_be_loads(
    suffix: str, tmp_path: Path, command: Command
) -> None:
    path = written(tmp_path / f"a{suffix}", REPEATED[:, 2:6])
    hint = "; tessera inspect --loads reads loads of experts\n"
    for words in (["inspect"], ["align"], ["bench", "--log"], ["inspect", "--experts", 4]):
        code, out, err = command(*words, path)
        assert (code, out) == (2, "") and err.endswith(hint)
    assert AS_LOADS.replace("8", "4") in command("inspect", path, "--loads")[1]
    ids = IDS.copy()
    ids[7, 2] = ids[7, 3]
    code, _, err = command("inspect", written(tmp_path / f"b{suffix}", ids))
    assert code == 2 and "expected different experts" in err and "loads" not in err


def test_what_is_told_to_be_loads(tmp_path: Path, command: Command) -> None:
    small = LOADS % 2  # as one-hot maps are
    for name, array in (("steps", np.stack([REPEATED, REPEATED])), ("small", small)):
        path = written(tmp_path / f"{name}.npy", array)
        assert AS_LOADS in command("inspect", path, "--loads")[1]
    steps = command("inspect", tmp_path / "steps.npy")[2]
    assert "--axes" in steps and steps.endswith("--loads reads loads of experts\n")
    path = tmp_path / "layers.npz"
    np.savez(path, layer0=LOADS[0], layer1=LOADS[1])
    note = "[8] is read as ids [tokens], but may be loads [experts]: tessera inspect --loads reads"
    assert note in command("inspect", path)[1]
    assert AS_LOADS.replace("4", "2") in command("inspect", path, "--loads")[1]
    # What a file says itself stands.
    np.savez(path, topk_ids=LOADS)
    assert "--loads: does nothing to ids" in command("inspect", path, "--loads")[2]
    assert "may be loads" not in command("inspect", path)[1]
    path.write_text('{"topk_ids": [1, 2]}\n')
    assert "--loads: does nothing to routing logs" in command("inspect", path, "--loads")[2]
    for suffix in (".npy", ".csv"):
        path = written(tmp_path / f"a{suffix}", np.where(LOADS[2, 3] == LOADS, -1, LOADS))
        code, out, err = command("inspect", path, "--loads")
        assert (code, out) == (2, "") and f"{path}: --loads: expected counts, integers " in err
        assert ", got -1; " in err and "without --loads, ids may be -1" in err


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((0, 2), int), "[layers, experts], at least one of each, got [0, 2]"),
        (np.zeros((0, 2)), "[layers, experts], at least one of each, got [0, 2]"),
        (
            LOADS + 0.5,
            f"counts, integers in [0, {2**53}), got {LOADS[0, 0]}.5; means of counts need ",
        ),
        (np.full((4, 8), np.nan), f"counts, integers in [0, {2**53}), got nan; "),
        (np.full((4, 8), -7), f"counts, integers in [0, {2**53}), got -7; "),
    ],
)
def test_what_cannot_be_loads(
    array: npt.NDArray[Any], expected: str, tmp_path: Path, command: Command
) -> None:
    np.save(path := tmp_path / "a.npy", array)
    code, out, err = command("inspect", path, "--loads")
    assert (code, out) == (2, "") and f"{path}: --loads: expected {expected}" in err
    np.savez(path := tmp_path / "a.npz", layer0=array, layer1=LOADS[0])
    assert f"{path}: --loads: layer0: expected {expected}" in command("inspect", path, "--loads")[2]
    np.savez(path, logical_count=LOADS + 0.5)
    assert f"{path}: logical_count: expected counts, integers in " in command("inspect", path)[2]


@pytest.mark.parametrize("options", [[], ["--loads"]])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("0,1\n", ": expected rows of numbers, got none after the first line, the numbers of "),
        ("1.5,2\n", ":1: expected an integer (means of counts need rounding), got '1.5'"),
        ("5\n", ": expected one of these forms, got a number in a line, which is no table (the "),
        ("a,b\n1,2\n", "got text with commas, in whose first line neither a column expert nor "),
    ],
)
def test_tables_of_little(
    content: str, expected: str, options: list[str], tmp_path: Path, command: Command
) -> None:
    (path := tmp_path / "a.csv").write_text(content)
    code, out, err = command("inspect", path, *options)
    assert (code, out) == (2, "") and f"{path}: " in err.replace(":1:", ":") and expected in err


def test_first_line_that_may_be_a_row(tmp_path: Path, command: Command) -> None:
    (path := tmp_path / "a.csv").write_text("0,1,2\n2,0,1\n1,0,2\n")
    note = "a.csv: the first line is no row, but the numbers of columns as pandas writes them: 0, 1"
    for options in ([], ["--loads"]):
        assert note in command("inspect", path, *options)[1]
    path.write_text(",0,1,2\n0,2,0,1\n1,1,0,2\n")  # with pandas' index
    assert "first line" not in command("inspect", path)[1]


def test_slots_without_an_id_are_neither_ids_nor_dropped(tmp_path: Path, command: Command) -> None:
    rows = [row[: 4 + place % 4].tolist() for place, row in enumerate(IDS[:100])]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"layer": 0, "topk_ids": {row}}}\n' for row in rows))
    assert "550 ids (100 tokens, top 4 to 7), 64 experts ->" in command("align", path)[1]
    assert "dropped" not in command("align", path)[1]
    assert "top 4 to 7" in command("inspect", path)[1]
    ids = IDS.copy()
    ids[:, 6:] = -1
    path = written(tmp_path / "b.npy", ids)
    code, out, _ = command("align", path, "--experts", 60)
    num_dropped = int((ids >= 60).sum())
    assert code == 0 and num_dropped
    assert "1800 ids (300 x 8 slots, 600 without one), 60 experts ->" in out
    assert f", {num_dropped} ids dropped contract: holds" in out
    (found,) = json.loads(command("align", path, "--experts", 60, "--json")[1])["workloads"]
    assert (found["num_ids"], found["num_unused"], found["num_dropped"]) == (1800, 600, num_dropped)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--axes: does nothing to arrays of less than three axes"),
        (["--phase", "prompt"], "--phase: does nothing to ids without prompt_routed_experts and "),
    ],
)
def test_options_that_change_nothing(
    words: list[str], message: str, tmp_path: Path, command: Command
) -> None:
    path = written(tmp_path / "a.npy", IDS)
    words = words or ["--axes", "tokens,layers,top_k"]
    for name in (["inspect"], ["align"], ["bench", "--log"]):
        code, out, err = command(*name, path, *words)
        assert (code, out) == (2, "") and f"{path}: {message}" in err


def test_an_option_given_twice(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "a.npy", np.stack([IDS, IDS], axis=1))
    for words in (["inspect"], ["align"], ["bench", "--log"]):
        for option, value in (("--experts", "64"), ("--axes", "tokens,layers,top_k")):
            with pytest.raises(SystemExit) as exited:
                main([*words, str(path), option, value, option, value])
            assert exited.value.code == 2
            message = f"tessera {words[0]}: argument {option}: expected it once\n"
            assert capsys.readouterr().err == message
    assert command("inspect", path, "--layer", 0, "--layer", 1)[0] == 0


def test_phases(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "a.npz"
    ids = IDS.reshape(50, 6, 8)
    np.savez(path, prompt_routed_experts=ids[:9], routed_experts=ids[9:])
    sizes = "tokens: 9 of prompt, 41 of generation; "
    assert sizes + "--phase reads one of them" in command("inspect", path)[1]
    out = command("inspect", path, "--phase", "generation")[1]
    assert sizes + "only those of generation are read" in out
    responses = tmp_path / "b.json"
    responses.write_text(json.dumps({"routed_experts": ids.tolist()}))
    code, _, err = command("inspect", responses, "--phase", "prompt")
    assert code == 2
    assert "b.json: --phase: expected generation, since there is no other, got prompt\n" in err
    assert command("inspect", responses, "--phase", "generation")[0] == 0


def test_ranks_whose_rows_differ_in_length(tmp_path: Path, command: Command) -> None:
    def log(name: str, lengths: list[int]) -> Path:
        rows = [row[:length].tolist() for row, length in zip(IDS, lengths, strict=False)]
        lines = [json.dumps({"layer": 0, "topk_ids": row}) for row in rows]
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    differ, wider = log("a.jsonl", [4, 5, 7, 6] * 20), log("b.jsonl", [3, 8] * 20)
    fixed = [log(f"{length}.jsonl", [length] * 40) for length in (6, 5)]
    for paths, words in (
        ([differ], "4 to 7"),
        ([differ, wider], "3 to 8"),
        ([wider, differ], "3 to 8"),
    ):
        assert f"top {words}, 1 layer" in command("inspect", *paths, "--files", "ranks")[1]
    assert "top 3 to 8, 1 layer" in command("inspect", fixed[0], wider, "--files", "ranks")[1]
    copy = log("copy.jsonl", [6] * 40)
    assert "top 6, 1 layer" in command("inspect", fixed[0], copy, "--files", "ranks")[1]
    code, _, err = command("inspect", fixed[0], copy, fixed[1], "--files", "ranks")
    assert code == 2 and "expected 6 ids for each token, as before, got 5" in err
    code, out, err = command(
        *(
            "bench",
            "--device",
            "cpu",
            "--peers",
            "none",
            "--log",
            differ,
            wider,
            "--files",
            "ranks",
        ),
        *("--tokens", 64, "--block-size", 16),
    )
    assert (code, err) == (0, "") and "120 tokens, top 3 to 8 of" in out
