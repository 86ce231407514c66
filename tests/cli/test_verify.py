"""`tessera verify` of Tessera's own implementations, over all ops."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from programs import run_program
from tessera._op import Op, op_names
from tessera.cli import verify
from tessera.cli.main import main
from tessera.verification import case_names

Capture = pytest.CaptureFixture[str]


def shown(capsys: Capture, *arguments: str, code: int = 0) -> str:
    """What the command prints, on the CPU."""
    assert main(["verify", "--device", "cpu", *arguments]) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_a_case_that_is_not_there(capsys: Capture) -> None:
    for op in op_names():
        assert main(["verify", "--op", op, "--cases", "banana"]) == 2
        assert capsys.readouterr().err == (
            f"tessera verify: {op}: no case is named 'banana'; random ones are named "
            f"random:SEED:SIZE, the others {', '.join(case_names(Op(op)))}\n"
        )
    assert main(["verify", "--cases", "banana"]) == 2
    assert capsys.readouterr().err.endswith(" (--op NAME selects the cases of another op)\n")


def test_every_op(capsys: Capture) -> None:
    options = ("--random", "5", "--max-ids", "300")
    document = json.loads(shown(capsys, *options, "--json"))
    assert list(document["ops"]) == op_names()
    assert document["failures"] == []
    assert document["cases"] == sum(one["cases"] for one in document["ops"].values())
    lines = shown(capsys, *options).splitlines()
    left = 0
    for name, one in document["ops"].items():
        assert one["cases"] > 25
        left += one["cases"] * len(one["implementations"]) - one["passed"]
        assert (
            f"{name}: verified {', '.join(one['implementations'])} on {one['cases']} cases, "
            f"seed 0: {one['passed']} passed, 0 failed"
        ) in lines
    # By name, of all ops that have an implementation of it.
    assert left == sum(document["left_to_others"].values())


def test_one_case_of_another_op(capsys: Capture) -> None:
    options = ("--implementation", "cpu/reference")
    expected = "verified cpu/reference on 1 cases, seed 0: 1 passed, 0 failed\n"
    assert shown(capsys, "--cases", "rows_apart_fp32", *options) == expected
    assert shown(capsys, "--op", "moe_sum", "--cases", "random:1:9", *options) == expected


def test_an_implementation_of_one_op_alone(capsys: Capture) -> None:
    options = ("--implementation", "cpu/counting_sort", "--random", "0")
    (line,) = shown(capsys, *options).splitlines()
    assert line.startswith("align_block_size: verified cpu/counting_sort on ")


@pytest.mark.parametrize("op", op_names())
def test_the_replay_of_a_failure_makes_that_call_again(
    op: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    called = []

    def broken_once(*case: Any) -> list[str]:
        called.append((case[0].name, *case[1:]))
        return ["made up"] if case[1:4] == ("no_tokens", 7, "cpu/reference") else []

    names = ["one", "no_tokens"]
    monkeypatch.setattr(verify, "case_names", lambda each: names)
    monkeypatch.setattr(verify, "require_case", lambda each, name: None)
    monkeypatch.setattr(verify, "problems", broken_once)
    out = shown(capsys, "--op", op, "--random", "1", "--seed", "7", code=1)
    assert "\n  made up\n" in out
    assert "passed, 1 failed\n" in out
    (replay,) = re.findall("replay: tessera (.*)", out)
    called.clear()
    assert main(replay.split()) == 1
    assert called == [(op, "no_tokens", 7, "cpu/reference", 0)]


def test_failures_of_several_ops_name_theirs(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def broken(op: Any, case: str, seed: int, implementation: str, cuda_index: int) -> list[str]:
        if (op.name, case) == ("moe_sum", "huge"):
            raise NotImplementedError
        return ["made up"] if (op.name, case) == ("moe_sum", "special") else []

    monkeypatch.setattr(verify, "problems", broken)
    options = ("--implementation", "cpu/reference", "--random", "0")
    lines = shown(capsys, *options, code=1).splitlines()
    at = lines.index("moe_sum: FAILED cpu/reference on special")
    assert lines[at + 1] == "  made up"
    assert lines[at + 2].startswith("  replay: tessera verify --op moe_sum --cases special ")
    assert lines[at + 3].startswith("moe_sum: cpu/reference: 1 cases left to other implementations")
    assert lines[at + 4].endswith(" passed, 1 failed")
    document = json.loads(shown(capsys, *options, "--json", code=1))
    (failure,) = document["failures"]
    assert (failure["op"], failure["case"]) == ("moe_sum", "special")
    counts = document["ops"]["moe_sum"]
    assert (counts["passed"], counts["failed"]) == (counts["cases"] - 2, 1)
    assert document["left_to_others"] == {"cpu/reference": 1}


def refused(capsys: Capture, *arguments: str) -> tuple[str, str]:
    """What a run in which nothing of an op ran prints to stdout and stderr."""
    assert main(["verify", "--device", "cpu", *arguments]) == 2
    return capsys.readouterr()


@pytest.mark.parametrize("op", op_names())
def test_an_implementation_that_runs_no_case(
    op: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def cannot_run(*_: Any) -> list[str]:
        raise NotImplementedError(f"{op}: needs another processor")

    monkeypatch.setattr(verify, "problems", cannot_run)
    message = f"tessera verify: nothing was verified: {op}: needs another processor\n"
    for options in [(), ("--implementation", "cpu/reference"), ("--cases", "no_tokens")]:
        out, err = refused(capsys, "--op", op, *options)
        assert err == message
        assert "verified" not in out
    out, err = refused(capsys, "--op", op, "--json")
    assert err == message
    document = json.loads(out)
    assert document["implementations"] == document["ops"][op]["implementations"] == []
    assert document["ops"][op]["passed"] == 0


def test_an_implementation_that_the_processor_or_the_case_does_not_suit(capsys: Capture) -> None:
    words = ("--op", "fused_experts", "--cases", "biases_fp32")
    out, err = refused(capsys, *words, "--implementation", "cpu/avx512_bf16")
    assert out == ""
    assert re.fullmatch(
        "tessera verify: nothing was verified: fused_experts: implementation: expected .*"
        "cpu/portable or cpu/reference, got cpu/avx512_bf16; it (needs|multiplies|was) .*\n",
        err,
    )


def test_ops_that_have_no_implementation_of_the_name_in_the_environment() -> None:
    """Those that have one, or no choice, are verified nevertheless."""
    words = ["verify", "--device", "cpu", "--random", "0"]
    done = run_program([sys.executable, "-m", "tessera", *words], TESSERA_IMPL="cpu/portable")
    verified = re.findall("^(.*): verified", done.stdout, re.MULTILINE)
    without = {"align_block_size": "cpu/counting_sort", "moe_permute": "cpu/tokens"}
    assert (done.returncode, verified) == (2, [op for op in op_names() if op not in without])
    assert done.stderr == "".join(
        f"tessera verify: nothing was verified: {op}: implementation: expected {name} or "
        "cpu/reference, got cpu/portable, which TESSERA_IMPL asks for\n"
        for op, name in without.items()
    )


def test_an_implementation_that_ran_nothing_is_not_listed_as_verified(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def problems(op: Any, case: str, seed: int, implementation: str, cuda_index: int) -> list[str]:
        if implementation == "cpu/counting_sort":
            raise NotImplementedError
        return []

    monkeypatch.setattr(verify, "problems", problems)
    lines = shown(capsys, "--op", "align_block_size", "--cases", "block_7").splitlines()
    assert lines[0].startswith("cpu/counting_sort: 1 cases left to other implementations")
    assert lines[1] == "verified cpu/reference on 1 cases, seed 0: 1 passed, 0 failed"
