"""The program `tessera`, run as a user runs it: output, exit codes, messages, files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessera
from programs import run_program
from tessera._op import op_names
from tessera.contract import synthetic_topk_ids

TESSERA = str(Path(sys.executable).with_name("tessera"))
META = '{"type": "meta", "model_id": "m"}\n'
ROUTE = '{"type": "route", "layer": %d, "topk_ids": %s}\n'


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return run_program([TESSERA, *map(str, arguments)], **options)


def read_json(*arguments: object, **options: Any) -> Any:
    done = run(*arguments, "--json", **options)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def refused(*arguments: object, **options: Any) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    done = run(*arguments, **options)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


def test_info() -> None:
    done = run("info", TESSERA_NUM_THREADS="3")
    assert done.returncode == 0
    assert re.search(rf"^tessera +{re.escape(tessera.version())}", done.stdout, re.MULTILINE)
    assert re.search(r"^backend cpu +available: ", done.stdout, re.MULTILINE)
    assert re.search(r"^backend cuda +(un)?available: \w", done.stdout, re.MULTILINE)
    assert re.search(
        r"^align_block_size +cpu/counting_sort first choice; ", done.stdout, re.MULTILINE
    )
    assert re.search(r"^TESSERA_NUM_THREADS +3", done.stdout, re.MULTILINE)


def test_info_as_json_and_as_a_module() -> None:
    document = read_json("info", TESSERA_IMPL="cpu/reference")
    assert document["version"] == tessera.version()
    assert document["environment"] == {"TESSERA_IMPL": "cpu/reference"}
    selected = [(one["op"], one["name"]) for one in document["implementations"] if one["selected"]]
    assert selected == [(op, "cpu/reference") for op in op_names()]
    module = run_program([sys.executable, "-m", "tessera", "info", "--json"])
    assert json.loads(module.stdout)["build"] == document["build"]


def test_info_explains_a_shape() -> None:
    done = run("info", "--explain", 8192, 64, 128, "--device", "cpu", TESSERA_IMPL="cpu/reference")
    assert done.returncode == 0
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert [[name, text.strip()] for name, text in lines] == [
        ["device", "cpu"],
        ["shape", "8192 ids, 64 experts, blocks of 128"],
        ["cpu/counting_sort", "refused: not the implementation asked for, cpu/reference"],
        ["cpu/reference", "first choice"],
    ]
    document = read_json("info", "--explain", 8192, 64, 128, "--device", "cpu")
    assert document["shape"] == {"num_ids": 8192, "num_experts": 64, "block_size": 128}
    assert [one["selected"] for one in document["implementations"]] == [True, False]


def test_align_without_a_file_shows_the_workload() -> None:
    done = run("align", "--time")
    assert (done.returncode, done.stderr) == (0, "")
    assert "synthetic, 4096 tokens, 64 experts, top 2, uniform, seed 0" in done.stdout
    assert "device    cpu, cpu/counting_sort" in done.stdout
    assert "8192 ids (4096 x 2), 64 experts -> " in done.stdout
    assert re.search(r"^time +[\d.]+ us  tessera$", done.stdout, re.MULTILINE)
    assert re.search(r"us  NumPy composition  \([\d.]+ x\)$", done.stdout, re.MULTILINE)
    assert "contract: holds" in done.stdout
    assert "█" in done.stdout


def test_align_synthetic_as_json() -> None:
    options = ("--tokens", 300, "--experts", 12, "--top-k", 3, "--distribution", "zipf")
    document = read_json("align", *options, "--seed", 4, "--block-size", 16, "--pad-sorted-ids")
    (report,) = document["workloads"]
    topk_ids = synthetic_topk_ids(300, 12, 3, zipf=True, seed=4)
    found = tessera.align_block_size(topk_ids, block_size=16, num_experts=12, pad_sorted_ids=True)
    assert report["expert_counts"] == np.bincount(topk_ids.reshape(-1), minlength=12).tolist()
    assert report["num_tokens_post_pad"] == found.num_tokens_post_pad[0]
    assert report["capacity"] == len(found.sorted_token_ids)
    assert (report["num_dropped"], report["violations"], report["time_us"]) == (0, [], {})


def test_align_routing_log_layer_by_layer(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(META + ROUTE % (1, [3, 0]) + ROUTE % (4, [5, 1]) + ROUTE % (1, [2, 0]))
    done = run("align", log, "--block-size", 2)
    assert done.returncode == 0
    assert "does not give the number of experts: 6 is its largest id + 1" in done.stdout
    assert re.findall(r"^layer +(\d+)$", done.stdout, re.MULTILINE) == ["1", "4"]
    document = read_json("align", log, "--experts", 7)
    assert document["note"] == ""
    assert [report["expert_counts"] for report in document["workloads"]] == [
        [2, 0, 1, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 1, 0],
    ]


def test_align_notes_warm_up_that_inspect_leaves_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = ROUTE % (0, [1, 2]) * 64 + ROUTE % (0, [0, 1])
    log.write_text(META + rows + ROUTE % (3, [0, 1]) * 63)
    document = read_json("align", log, "--experts", 4)
    assert document["note"].startswith("64 rows are in runs of 64 or more equal rows, as from ")
    assert document["workloads"][0]["num_ids"] == 130
    noted = run("align", log).stdout
    assert "3 is its largest id + 1; 64 rows are in runs" in noted
    log.write_text(META + ROUTE % (3, [0, 1]) * 63)
    assert read_json("align", log, "--experts", 4)["note"] == ""


def test_ids_that_do_not_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tessera.cli import inputs
    from tessera.cli.main import main

    monkeypatch.setattr(inputs, "_available_bytes", lambda: 99_999)
    assert main(["align", "--tokens", "5000", "--block-size", "1"]) == 2
    assert capsys.readouterr().err == (
        "tessera align: --tokens: expected ids and outputs that fit into 0.0 GB of memory, got "
        "5000 tokens, which take 0.0 GB\n"
    )
    assert main(["bench", "--device", "cpu", "--tokens", "5000", "--block-size", "1"]) == 2
    assert capsys.readouterr().err.startswith("tessera bench: --tokens: expected ids and outputs")
    monkeypatch.setattr(inputs, "_available_bytes", lambda: 120_000)
    assert main(["align", "--tokens", "5000", "--block-size", "1"]) == 0


def test_memory_that_a_control_group_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tessera.cli import inputs

    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("4096\n")
    monkeypatch.setattr(inputs, "_MEMORY_LIMITS", (tmp_path / "max", tmp_path / "absent"))
    assert inputs._available_bytes() > 4096
    monkeypatch.setattr(inputs, "_MEMORY_LIMITS", (tmp_path / "max", tmp_path / "limit"))
    assert inputs._available_bytes() == 4096


def test_stages_are_shown_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tessera.cli.main import main

    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take stderr for a terminal
    assert main(["align", "--tokens", "9", "--json", "--time"]) == 0
    out, err = capsys.readouterr()
    for stage in ("making ids", "aligning", "checking", "timing"):
        assert stage in err
    json.loads(out)


def test_align_saves_what_it_can_read_again(tmp_path: Path) -> None:
    ids = np.array([[3, 1], [0, 3], [-1, 2]], np.int64)
    expert_map = np.array([1, -1, 0, 2], np.int32)
    np.savez(tmp_path / "in.npz", topk_ids=ids, num_experts=4, expert_map=expert_map)
    done = run("align", "in.npz", "--block-size", 2, "--output", "out.npz", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "wrote out.npz\n")
    first = json.loads(done.stdout)
    counted = [first["workloads"][0][name] for name in ("num_ids", "num_unused", "num_dropped")]
    assert counted == [5, 1, 0]
    expected = tessera.align_block_size(ids, block_size=2, num_experts=4, expert_map=expert_map)
    with np.load(tmp_path / "out.npz") as saved:
        assert sorted(saved) == sorted(
            ["topk_ids", "num_experts", "block_size", "expert_map", *expected._fields]
        )
        for name, array in expected._asdict().items():
            np.testing.assert_array_equal(saved[name], array)
    second = read_json("align", "out.npz", "--block-size", 2, cwd=tmp_path)
    assert second["workloads"] == first["workloads"]

    line = refused("align", "in.npz", "--output", "out.npz", cwd=tmp_path)
    assert line == "tessera align: out.npz: exists already; --force overwrites it"
    assert run("align", "in.npz", "--output", "out.npz", "--force", cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "out.npz"]


def test_align_npy_in_any_order(tmp_path: Path) -> None:
    ids = np.asfortranarray(np.array([[3, 1], [0, 3]], np.uint16))
    np.save(tmp_path / "ids.npy", ids)
    (report,) = read_json("align", tmp_path / "ids.npy", "--time")["workloads"]
    assert report["expert_counts"] == [1, 1, 0, 2]
    assert set(report["time_us"]) == {"tessera", "NumPy composition"}


def test_align_refuses_bad_files(tmp_path: Path) -> None:
    def write(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        return name

    def line(*arguments: object) -> str:
        return refused("align", *arguments, cwd=tmp_path)

    log = write("log.jsonl", META + ROUTE % (0, [1]) + "{\n")
    assert line(log, "--output", "out.npz").startswith(
        "tessera align: log.jsonl:3: expected JSON, got "
    )
    assert not (tmp_path / "out.npz").exists()
    assert line("none.jsonl") == "tessera align: none.jsonl: No such file or directory"
    assert line("none.npy") == "tessera align: none.npy: No such file or directory"
    assert ", not as an .npy begins: " in line(write("ids.npy", "not NumPy"))
    assert ", not as an .npz begins: " in line(write("ids.npz", "PK not"))
    assert line(write("ids.txt", "1")).startswith(
        "tessera align: ids.txt: expected one of these forms, got a number in a line, which is no "
        "table "
    )
    np.savez(tmp_path / "other.npz", ids=np.array(["a"]))
    assert "got a zip archive without arrays of ids: " in line("other.npz")
    np.save(tmp_path / "float.npy", np.full((2, 2), 0.5))
    assert line("float.npy", "--experts", 4).startswith(
        "tessera align: float.npy: router logits [2, 2]: expected --top-k, "
    )
    np.save(tmp_path / "negative.npy", np.array([-1]))
    assert line("negative.npy").endswith("no routing: every row is -1, which is no expert")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["align", "--tokens", "0"], "argument --tokens: expected an integer in [1, 2147483647]"),
        (["align", "--block-size", "x"], "argument --block-size: expected an integer in [1, "),
        (["align", "--block-size", 2**31 - 1], "align_block_size: capacity: expected at most"),
        (["align", "--distribution", "normal"], "argument --distribution: invalid choice"),
        (
            ["align", "--experts", 4, "--top-k", 5],
            "--top-k: expected at most as many as --experts, 4, got 5",
        ),
        (["align", "--device", "cuda"], "--device cuda: unavailable: "),
        (["verify", "--device", "cuda:1"], "--device cuda:1: unavailable: "),
        (["align", "--device", "gpu"], "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["info", "--explain", 1, 1, 0], "block_size: expected an integer in [1, 2147483647], got"),
        (["info", "--explain", 1, "x", 1], "num_ids, num_experts, block_size, got 'x'"),
        (["align", "--output", "absent/out.npz"], "--output: there is no folder absent"),
        *(
            ([*command, ""], f"argument {command[-1]}: expected a path, got an empty name")
            for command in (
                ["align", "--output"],
                ["inspect", "log.jsonl", "--html"],
                ["inspect", "log.jsonl", "--pictures"],
                ["bench", "--json"],
                ["bench", "--plot"],
                ["bench", "--log"],
            )
        ),
        (["align", ""], "argument FILE: expected a path, got an empty name"),
        (["inspect", "log.jsonl", ""], "argument LOG: expected a path, got an empty name"),
        (["align", "--seed", "-1"], "argument --seed: expected an integer in [0, 922337203685477"),
        (["verify", "--max-ids", "0"], "argument --max-ids: expected an integer in [1, 2147483647"),
        (["verify", "--random", "-1"], "argument --random: expected an integer in [0, 2147483647]"),
        (
            ["align", "--tokens", 2**31 - 1, "--top-k", 64],
            f"align_block_size: topk_ids.num_elements: expected an integer in [0, 2147483647], got "
            f"{(2**31 - 1) * 64}",
        ),
        (["verify", "--cases", "no_case"], "no case is named 'no_case'"),
        (
            ["verify", "--op", "moe_sum", "--cases", "block_7"],
            "moe_sum: no case is named 'block_7'",
        ),
        (["verify", "--implementation", "gpu/x"], "--implementation: expected one of cpu/"),
        (["verify", "--op", "sum"], "--op: expected one of align_block_size, batched_align_block"),
        (
            ["verify", "--op", "moe_sum", "--implementation", "cpu/counting_sort"],
            "--implementation: expected one of cpu/",
        ),
        (
            ["verify", "--op", "sum", "--impl", "a:b"],
            "--op: expected one of align_block_size, batched_align_block_size, ",
        ),
    ],
)
def test_bad_usage(arguments: list[object], message: str, tmp_path: Path) -> None:
    line = refused(*arguments, cwd=tmp_path)
    assert line.startswith(f"tessera {arguments[0]}: ")
    assert message in line


def test_version() -> None:
    for option in ("--version", "-V"):
        done = run(option)
        assert (done.returncode, done.stdout) == (0, f"tessera {tessera.version()}\n")


def test_no_command_and_help() -> None:
    assert refused().startswith("tessera: the following arguments are required: COMMAND")
    shown = run("align", "--help")
    assert shown.returncode == 0
    assert "slots in a block (default: 128)" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "--version",
        "inspect --help",
        "info",
        "info --json",
        "info --explain moe_sum T=2 k=8 H=16 dtype=float32",
        "align --tokens 9",
        "align --tokens 9 --json",
        "inspect a.npy",
        "inspect a.npy --json",
        "inspect a.npy b.npy --compare",
        "verify --cases random:1:9",
        "bench --device cpu --tokens 1 --peers none",
    ],
)
def test_a_reader_may_leave(words: str, tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, np.arange(8000).reshape(1000, 8) % 64)
    # The reader has gone before the program prints.
    command = f"({TESSERA} {words}; echo $? >code) | true"
    done = run_program(["sh", "-c", command], cwd=tmp_path)
    assert ((tmp_path / "code").read_text(), done.stdout, done.stderr) == ("141\n", "", "")


def test_verify() -> None:
    options = ("--random", 5, "--max-ids", 500, "--seed", 3)
    document = read_json("verify", "--op", "align_block_size", *options)
    assert document["implementations"] == ["cpu/counting_sort", "cpu/reference"]
    assert document["cases"] > 50
    assert (document["failures"], document["skipped"]) == ([], {})
    assert list(document["ops"]) == ["align_block_size"]


def test_verify_one_case() -> None:
    done = run("verify", "--cases", "random:3:500", "--implementation", "cpu/counting_sort")
    assert done.returncode == 0
    assert done.stdout == ("verified cpu/counting_sort on 1 cases, seed 0: 1 passed, 0 failed\n")


def test_failures_are_told_with_their_replay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tessera.cli import verify
    from tessera.cli.main import main

    monkeypatch.setattr(verify, "problems", lambda *case: ["made up"])
    assert main(["verify", "--cases", "random:3:50", "--seed", "9"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED cpu/reference on random:3:50\n  made up\n" in shown
    replay = "tessera verify --cases random:3:50 --seed 9 --implementation cpu/reference"
    assert f"  replay: {replay}\n" in shown


def test_align_tells_a_broken_contract(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tessera.cli.main import main

    right = tessera.align_block_size

    def wrong(*args: Any, **options: Any) -> Any:
        found = right(*args, **options)
        found.expert_ids[-1] = 5
        return found

    monkeypatch.setattr(tessera, "align_block_size", wrong)
    assert main(["align", "--tokens", "9"]) == 1
    shown = capsys.readouterr().out
    assert "contract  broken: expert_tail: expert_ids[" in shown
    assert "holds" not in shown


def test_host_threads_on_a_gpu_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tessera.cli import align
    from tessera.cli.main import main

    monkeypatch.setattr(align, "chosen_device", lambda name: 0)
    assert main(["align", "--num-threads", "2"]) == 2
    assert capsys.readouterr().err == (
        "tessera align: --num-threads: expected a run on the CPU, whose threads it limits, got "
        "one on cuda:0\n"
    )
