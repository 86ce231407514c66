"""`tessera verify --impl --op`: an implementation judged by an op's table of cases."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera._op import Op
from tessera.cli.main import main
from tessera.tools.judge.case_calls import passed
from tessera.verification import CaseArray, case_values

FOLDER = Path(__file__).parent
Judge = Callable[..., dict[str, Any]]
NUM_RANDOM = 100
SMALL = ("--random", f"{NUM_RANDOM}", "--max-ids", "200", "--arrays", "numpy")
# Types of arrays that NumPy has as bits alone, so that no function of it is asked for them.
BITS = {"fused_experts": ["bfloat16", "float8_e4m3fn"], "moe_sum": ["bfloat16"]}


@pytest.fixture(autouse=True)
def in_folder_of_faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.fixture
def judged(capfd: pytest.CaptureFixture[str]) -> Judge:
    """The document of a verdict on small calls with arrays of NumPy."""

    def judge(name: str, *arguments: str, op: str = "fused_experts") -> dict[str, Any]:
        usual = ("--cases", "no_tokens", *SMALL)
        words = ["verify", "--impl", name, "--op", op, "--json", *usual, *arguments]
        code = main(words)
        out, err = capfd.readouterr()
        assert err == ""
        document: dict[str, Any] = json.loads(out)
        broken = {finding["rule"] for finding in document["findings"]}
        assert code == (1 if broken else 0)
        assert document["num_calls"] == document["num_cases"] > 4
        return document

    return judge


def rules(document: dict[str, Any]) -> list[str]:
    return [finding["rule"] for finding in document["findings"]]


def only(document: dict[str, Any], rule: str) -> dict[str, Any]:
    (finding,) = document["findings"]
    assert finding["rule"] == rule
    found: dict[str, Any] = finding
    return found


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
@pytest.mark.parametrize("op", ["fused_experts", "moe_sum"])
def test_tessera_keeps_the_contract(judged: Judge, op: str, arrays: str) -> None:
    if arrays == "torch":
        pytest.importorskip("torch", reason="torch is not installed")
    document = judged(f"tessera:{op}", "--cases", "all", "--arrays", arrays, op=op)
    assert document["findings"] == []
    assert list(document["not_asked"]) == (BITS[op] if arrays == "numpy" else [])
    assert (document["op"], document["arrays"], document["device"]) == (op, arrays, "cpu")


def test_a_function_with_few_parameters(judged: Judge) -> None:
    document = judged("faulty_experts:plain", "--cases", "all")
    assert document["findings"] == []
    assert {"activation", "expert_map", "w13_bias", "out"} <= set(document["not_asked"])


def test_the_call_with_fewest_elements_is_shown(judged: Judge) -> None:
    document = judged("faulty_experts:ids_from_the_end")
    assert rules(document) == ["no_experts", "error_bound"]
    for finding in document["findings"]:
        again = judged_again(finding)
        assert again["num_cases"] == 1
        (same,) = [one for one in again["findings"] if one["rule"] == finding["rule"]]
        assert (same["message"], same["call"]) == (finding["message"], finding["call"])
        assert 0 < finding["num_calls"] < document["num_calls"]
        assert finding["meaning"].endswith(".")


def judged_again(finding: dict[str, Any]) -> dict[str, Any]:
    """What the snippet finds, as a command of its own."""
    program, *words = finding["snippet"].split()
    assert program == "tessera"
    command = [sys.executable, "-m", "tessera", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_what_breaks_everywhere_is_shown_by_the_smallest_call(judged: Judge) -> None:
    document = judged("faulty_experts:float64")
    finding = only(document, "output_sizes")
    sizes, num_asked = {}, 0
    for name in ("no_tokens", *(f"random:{n}:200" for n in range(NUM_RANDOM))):
        values = case_values(Op("fused_experts"), name, 0)
        arrays = [value for value in values if isinstance(value, CaseArray)]
        if all(array.dtype not in BITS["fused_experts"] for array in arrays):
            # An `out` is of the right type, whatever the function returns.
            num_asked += 1
            if "out" in passed(Op("fused_experts"), values):
                continue
            sizes[name] = sum(math.prod(array.shape) for array in arrays)
    assert (document["num_calls"], finding["num_calls"]) == (num_asked, len(sizes))
    assert sizes[finding["case"]] == min(sizes.values())


def test_ignored_biases(judged: Judge) -> None:
    finding = only(judged("faulty_experts:no_biases"), "error_bound")
    assert {"w13_bias", "w2_bias"} & set(finding["call"])
    assert "times the bound" in finding["message"]


def test_a_dead_process(judged: Judge) -> None:
    finding = only(judged("faulty_experts:aborts", "--cases", "all"), "no_crash")
    assert finding["kind"] == "SIGABRT"
    assert finding["message"].startswith("the process died with SIGABRT")
    assert finding["call"]["x"].startswith("float")
    assert "[0, " in finding["call"]["x"]


def test_a_process_that_hangs(judged: Judge) -> None:
    finding = only(judged("faulty_experts:hangs", "--random", "40"), "no_hang")
    assert finding["message"].startswith("the call was ended after ")
    assert finding["call"]["topk_ids"].endswith(", 3]")


def test_an_exception(judged: Judge) -> None:
    finding = only(judged("faulty_experts:raises"), "no_exception")
    assert (finding["kind"], finding["message"]) == ("KeyError", "raised KeyError: 'gelu_no_mul'")


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        ("writes_to_its_input", "inputs_kept", "topk_weights was written to"),
        ("fills_gaps", "memory_kept", "memory beside output was written"),
        ("of_lists", "output_form", "expected one array, got a value of type list"),
    ],
)
def test_calling(judged: Judge, name: str, rule: str, message: str) -> None:
    finding = only(judged(f"faulty_experts:{name}"), rule)
    assert finding["message"].startswith(message)


def test_bits_that_change_from_call_to_call(judged: Judge) -> None:
    document = judged("faulty_experts:not_repeatable", "--except", "error_bound,no_experts")
    assert only(document, "repeatable")["message"] == "the output differed between two equal calls"
    assert document["except"] == ["error_bound", "no_experts"]


def test_another_op(judged: Judge) -> None:
    document = judged("faulty_experts:sum_in_pairs", op="moe_sum")
    assert "exact_bits" in rules(document)
    assert document["not_asked"]["out"] > 0


def test_the_text(capfd: pytest.CaptureFixture[str]) -> None:
    words = ("--op", "fused_experts", "--cases", "biases_fp32", "--arrays", "numpy")
    assert main(["verify", "--impl", "faulty_experts:no_biases", *words]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("BROKEN error_bound: Every other element lies as near ")
    assert lines[1:3] == [
        "  on 1 of 1 cases; the one with fewest elements:",
        "    tessera verify --op fused_experts --impl faulty_experts:no_biases --arrays numpy "
        "--cases biases_fp32 --seed 0",
    ]
    assert lines[3].startswith("  its call: x float32[6, 64], w13 float32[")
    assert lines[-1] == (
        "judged faulty_experts:no_biases as fused_experts, numpy arrays on cpu, by 1 cases; "
        "seed 0: 1 rule broken"
    )
    assert main(["verify", "--impl", "faulty_experts:of_lists", *words]) == 1
    assert "it was given numpy arrays; --arrays torch gives others" in capfd.readouterr().out


def test_a_function_of_numpy_that_gets_tensors(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    words = ("--op", "moe_sum", "--cases", "no_tokens", "--random", "40", "--max-ids", "200")
    assert main(["verify", "--impl", "faulty_experts:numpy_sum", *words]) == 1
    out = capfd.readouterr().out
    assert "BROKEN no_exception (TypeError)" in out
    assert "BROKEN output_form" in out
    hint = "no call returned one array: it was given torch arrays; --arrays numpy gives others"
    assert hint in out.splitlines()
    assert (
        main(
            [
                "verify",
                "--impl",
                "faulty_experts:no_biases",
                *words[2:],
                *words[:1],
                "fused_experts",
                "--arrays",
                "numpy",
            ]
        )
        == 1
    )
    assert "no call returned one array" not in capfd.readouterr().out


def test_the_time_limit(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tessera.tools.judge import clock

    monkeypatch.setattr(clock, "END", 0.4)  # 8 of 20 seconds
    words = ("--op", "fused_experts", "--seconds", "20", "--random", "20000", "--arrays", "numpy")
    assert main(["verify", "--impl", "tessera:fused_experts", *words]) == 3
    out = capfd.readouterr().out
    assert "the time was up after " in out
    assert out.rstrip().endswith("nothing broken so far, by part of the cases")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["faulty_experts:plain", "--op", "sum"],
            "--op: expected one of align_block_size, batched_align_block_size, ",
        ),
        (
            ["faulty_experts:other_parameters", "--op", "fused_experts"],
            "--impl: expected a function with the parameters of tessera.fused_experts(x: ",
        ),
        (["absent:f", "--op", "moe_sum"], "--impl: absent cannot be imported: "),
        (
            ["faulty_experts:plain", "--op", "fused_experts", "--form", "vllm"],
            "--form: applies to align_block_size, not to fused_experts",
        ),
        (
            ["faulty_experts:plain", "--op", "fused_experts", "--except", "stable_order"],
            "--except: expected some of no_crash, no_hang, no_exception, output_form, inputs_kept, "
            "memory_kept, repeatable, valid_inputs, output_sizes, no_experts, error_bound, ",
        ),
        (
            ["faulty_experts:plain", "--op", "fused_experts", "--cases", "biases_fp32"],
            "--impl: expected a function and arrays that take a case of fused_experts, got "
            "faulty_experts:plain with arrays of ",
        ),
        (
            ["faulty_experts:plain", "--op", "fused_experts", "--cases", "block_7"],
            "fused_experts: no case is named 'block_7'",
        ),
    ],
)
def test_bad_usage(capfd: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["verify", "--impl", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
