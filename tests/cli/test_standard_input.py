"""Standard input as `-`: the file that is open there is an input like one that is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

TESSERA = [sys.executable, "-m", "tessera"]
LOG = '{"type": "route", "layer": 0, "topk_ids": [0, 3]}\n' * 9

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """The message of a command that reads `name` as standard input, and leaves it as it was."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        before = Path(name).read_bytes()
        with Path(name).open("rb") as stream:
            done = subprocess.run(
                [*TESSERA, *arguments], stdin=stream, capture_output=True, text=True, timeout=120
            )
        assert Path(name).read_bytes() == before
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        return line.removeprefix(f"tessera {arguments[0]}: ")

    return run


@pytest.mark.parametrize("stdin", ["-", "/dev/stdin"])
def test_standard_input_is_never_an_output(stdin: str, refused: Refused) -> None:
    Path("log.jsonl").write_text(LOG)
    Path("hard.html").hardlink_to("log.jsonl")
    np.savez("ids.npz", topk_ids=np.array([[0, 1], [2, 1]]))
    Path("pictures").mkdir()
    Path("pictures", "cost.svg").write_text(LOG)
    end = f"expected another file than the input {stdin}, got"
    html = ("--html", "log.jsonl", "--force")
    assert refused("log.jsonl", "inspect", stdin, *html) == f"--html: {end} log.jsonl"
    html = ("--html", "hard.html", "--force")
    assert refused("log.jsonl", "inspect", stdin, *html) == f"--html: {end} hard.html"
    pictures = ("--pictures", "pictures", "--force")
    assert refused("pictures/cost.svg", "inspect", stdin, *pictures) == (
        f"--pictures: expected a folder without the input {stdin}, got pictures, where cost.svg "
        "is that file"
    )
    output = ("--output", "ids.npz", "--force")
    assert refused("ids.npz", "align", stdin, *output) == f"--output: {end} ids.npz"
    bench = ("bench", "--device", "cpu", "--peers", "none", "--tokens", "1", "--log", stdin)
    json = ("--json", "log.jsonl", "--force")
    assert refused("log.jsonl", *bench, *json) == f"--json: {end} log.jsonl"


def test_standard_input_that_is_given_twice(refused: Refused) -> None:
    Path("log.jsonl").write_text(LOG)
    once = "LOG: expected every file once, got"
    for name in ("/dev/stdin", "log.jsonl"):
        assert refused("log.jsonl", "inspect", "-", name) == (
            f"{once} {name}, which is standard input"
        )
        assert refused("log.jsonl", "inspect", name, "-") == f"{once} -, which is {name}"


@pytest.mark.parametrize("command", ["inspect -", "align -", "bench --log - --device cpu"])
def test_closed_standard_input(command: str) -> None:
    line = " ".join([f"'{TESSERA[0]}'", *TESSERA[1:], command, "<&-"])
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"tessera {command.split()[0]}: standard input: expected a file or a pipe, got a closed "
        "one\n"
    )
