"""Files that are broken, or in none of the forms: a line says which file, where, and what it is."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tessera.cli.main import main

Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """The message of all commands that read files about one with this content."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, content: str | bytes | np.ndarray, *options: str) -> str:
        if isinstance(content, np.ndarray):
            np.save(name, content)
        else:
            Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        messages = set()
        for words in (["inspect"], ["align"], ["bench", "--device", "cpu", "--log"]):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert main([*words, name, *options]) == 2
            out, err = capsys.readouterr()
            assert out == ""
            (line,) = err.splitlines()
            messages.add(line.removeprefix(f"tessera {words[0]}: "))
        (message,) = messages
        return message

    return run


LONG = 200_000
NONE = "expected one of these forms, got "


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "x" * LONG, f"{NONE}content that begins with b'xxxxxxxx', which none has: "),
        ("x.csv", "1," * 9 + "1" * LONG, f"{NONE}text with commas: "),
        ("spaces.gz", gzip.compress(b" " * LONG), f"{NONE}content that begins with b'        '"),
        ("cr.csv", "a\rb\r1,2\r", f"{NONE}text whose lines end with CR instead of LF: "),
        ("cr.csv", "expert,count\r1,2\r", f"{NONE}text whose lines end with CR instead of LF: "),
    ],
)
def test_text_that_is_no_table(name: str, content: str, message: str, refused: Refused) -> None:
    assert refused(name, content).startswith(f"{name}: {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1" * LONG, "expected a line of a table (field larger than field limit (131072))"),
        ("1,2\r3,4", "expected a line of a table (CR within it)"),
        ("1," + " " * (1 << 22), "expected a line of at most 4194304 bytes, got a longer one"),
        ("1," + "9" * 5000, f"expected an integer, got '{'9' * 40}'"),
        (f"1,{2**63}", f"expected an integer below {2**53}, got '{2**63}'"),
    ],
)
def test_lines_that_are_no_row_of_a_table(line: str, message: str, refused: Refused) -> None:
    for head in ("1,2", "expert,count"):
        assert refused("a.csv", f"{head}\n{line}\n") == f"a.csv:2: {message}"


@pytest.mark.parametrize("count", [2**53, 2**63, 2**64])
def test_counts_have_a_limit(count: int, refused: Refused) -> None:
    line = '{"layer": 0, "tokens_per_expert": [%d, 5]}\n'
    assert refused("a.jsonl", line % count) == (
        f"a.jsonl:1: tokens_per_expert: expected counts in [0, {2**53}), got {count}"
    )
    assert refused("a.csv", f"expert,count\n1,{count}\n") == (
        f"a.csv:2: expected an integer below {2**53}, got '{count}'"
    )
    if count < 2**63:
        counts = np.full((4, 64), count, np.uint64)
        assert refused("a.npy", counts) == (
            f"a.npy: topk_ids: expected counts in [0, {2**53}), got {count}"
        )


def test_sums_of_counts_have_a_limit(refused: Refused) -> None:
    most = 2**53 - 1
    message = f"expected loads that add up to less than {2**53}, got more"
    line = f'{{"layer": 0, "tokens_per_expert": [{most}, 5]}}\n'
    assert refused("a.jsonl", line * 3000) == f"a.jsonl: layer 0: {message}"
    assert refused("a.csv", "expert,count\n" + f"1,{most}\n" * 3000) == f"a.csv: {message}"
    steps = np.full((3000, 4, 64), most)
    assert refused("a.npy", steps) == f"a.npy: layer 0: {message}"
