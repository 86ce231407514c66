"""Files that are broken, or in none of the forms: a line says which file, where, and what it is."""

from __future__ import annotations

import gzip
import json
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
        ("x.csv", "1," * 9 + "1" * LONG, f"{NONE}text with commas, in whose first line neither "),
        (
            "spaces.gz",
            gzip.compress(b" " * LONG, mtime=0),
            f"{NONE}content that begins with b'        '",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0),
            f"{NONE}gzip within gzip, of which",
        ),
        ("a.jsonl", b"\x97\n" * 9, f"{NONE}content that begins with b'\\x97\\n"),
        ("a.jsonl", b"\0\0\n", f"{NONE}content that begins with b'\\x00"),
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
            f"a.npy: expected counts, integers in [0, {2**53}), got {count}"
        )


def test_sums_of_counts_have_a_limit(refused: Refused) -> None:
    most = 2**53 - 1
    message = f"expected loads that add up to less than {2**53}, got more"
    line = f'{{"layer": 0, "tokens_per_expert": [{most}, 5]}}\n'
    assert refused("a.jsonl", line * 3000) == f"a.jsonl: layer 0: {message}"
    assert refused("a.csv", "expert,count\n" + f"1,{most}\n" * 3000) == f"a.csv: {message}"
    steps = np.full((3000, 4, 64), most)
    assert refused("a.npy", steps) == f"a.npy: layer 0: {message}"


LINE = '{"layer": 0, "topk_ids": [1, 2]}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"layer": 0, "tokens_per_expert": [4, 5]}',
            'topk_ids: missing in a line that has "layer, tokens_per_expert"',
        ),
        ("{}", "topk_ids: missing in a line that has no keys"),
        (
            '{"layer": 0, "topk_ids": [%s]}' % ("9" * 5000),
            "expected numbers of at most 4,300 digits, got a longer one",
        ),
        ('{"layer": "%s", "topk_ids": [1]}' % ("9" * 5000), "layer: expected an integer in "),
    ],
)
def test_lines_of_a_log(line: str, message: str, refused: Refused) -> None:
    assert refused("a.jsonl", f"{LINE}{line}\n").startswith(f"a.jsonl:2: {message}")


def test_base64_that_is_none(refused: Refused) -> None:
    assert refused("a.json", '{"routed_experts": "AAAA!!!!"}') == (
        "a.json:1: routed_experts: expected base64 of an array (Only base64 data is allowed)"
    )


def test_long_numbers_in_other_forms(refused: Refused) -> None:
    digits = "9" * 5000
    longer = "expected numbers of at most 4,300 digits, got a longer one"
    loads = '{"layer": 0, "tokens_per_expert": [%s]}'
    assert refused("a.jsonl", loads % digits) == f"a.jsonl:1: {longer}"
    layer = '{"layer": "%s", "tokens_per_expert": [4, 5]}'
    response = '{"routed_experts": [[[%s]]]}'
    for name, content in (
        ("a.jsonl", layer % digits),
        ("a.json", response % digits),
        ("a.csv", f"layer,expert,count\n{digits},1,2\n"),
    ):
        message = refused(name, content)
        assert message.startswith(f"{name}:") and "set_int_max" not in message


def test_logits_that_are_integers(refused: Refused) -> None:
    logits = np.random.default_rng(1).integers(-128, 127, (300, 64))
    for dtype in (np.int8, np.int32):
        assert refused("a.npy", logits.astype(dtype)).startswith(
            f"a.npy: router logits [300, 64], of {np.dtype(dtype)}, a quarter or more of them "
            "below -1: expected --top-k"
        )


def test_a_message_has_the_ids_of_the_file(refused: Refused) -> None:
    ids = np.array([[5, 5, 70000, 80000]])
    assert refused("a.npy", ids, "--experts", "8") == (
        "a.npy: row 0: topk_ids: expected different experts, got [5, 5, 70000, 80000]; tessera "
        "inspect --loads reads loads of experts"
    )


@pytest.mark.parametrize(
    ("array", "options", "what"),
    [
        (np.zeros((300, 64), bool), [], "0 in the map of every expert"),
        (np.full((300, 64), np.nan), ["--top-k", "2"], "NaN or -inf, from which nothing can be"),
        (np.full((300, 64), -np.inf), ["--top-k", "2"], "NaN or -inf, from which nothing can be"),
        (np.full((300, 8), -1), [], "-1, which is no expert"),
    ],
)
def test_rows_without_any_expert(
    array: np.ndarray, options: list[str], what: str, refused: Refused
) -> None:
    assert refused("a.npy", array, *options).startswith(f"a.npy: no routing: every row is {what}")


def test_logits_of_nan_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logits = np.random.default_rng(1).normal(size=(300, 16))
    logits[:40], logits[40:50], logits[60, 3:], logits[70] = np.nan, -np.inf, np.nan, 1e300
    np.save(tmp_path / "a.npy", logits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["inspect", str(tmp_path / "a.npy"), "--top-k", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (model,) = json.loads(out)["models"]
    (layer,) = model["layers"]
    assert (layer["num_tokens"], layer["num_empty"]) == (250, 50)
    assert sum(layer["expert_counts"]) == 500


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("number", [0.5, 1e30, np.inf, np.nan])
def test_numbers_in_floating_point_that_are_no_ids(
    number: float, dtype: type, refused: Refused
) -> None:
    with np.errstate(over="ignore"):
        ids = np.array([[1.0, 2.0], [3.0, number]]).astype(dtype)
    np.savez("a.npz", topk_ids=ids)
    name = np.dtype(dtype).name
    assert refused("a.npz", Path("a.npz").read_bytes()) == (
        f"a.npz: topk_ids: expected integers, got {name}"
    )
    assert refused("a.npy", ids).startswith("a.npy: router logits [2, 2]: expected --top-k")


def test_repeated_rows_are_told_with_ids_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.random.default_rng(1).random((300, 64)).argsort(axis=1)[:, :4]
    ids[:100] = [5, 70000, 3, 80000]
    np.save(tmp_path / "a.npy", ids)
    assert main(["inspect", str(tmp_path / "a.npy"), "--experts", "64", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    (run,) = model["layers"][0]["repeated"]
    assert (run["num_tokens"], run["topk_ids"]) == (100, [5, 3])


def test_loads_have_the_limits_of_logs(refused: Refused) -> None:
    counts = np.random.default_rng(1).integers(100, 9999, (1025, 64))
    assert refused("a.npy", counts) == "a.npy: expected loads of at most 1024 layers, got 1025"
    counts = np.random.default_rng(1).integers(100, 9999, (2, 65537))
    assert refused("a.npy", counts) == "a.npy: expected at most 65536 experts, got 65537"


def test_loads_share_the_limit_of_experts_over_all_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.random.default_rng(1).integers(100, 9999, (17, 65536)))
    assert main(["inspect", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"tessera inspect: {path}: layers: expected at most 1048576 experts in all layers of all "
        "logs together, got more\n"
    )
