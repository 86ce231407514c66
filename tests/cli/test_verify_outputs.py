"""`tessera verify --impl --op` for ops with several outputs, and for functions of engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera.cli.main import main

FOLDER = Path(__file__).parent
Judge = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def in_folder_of_faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.fixture
def judged(capfd: pytest.CaptureFixture[str]) -> Judge:
    """The document of a verdict on the table's cases, by default with arrays of NumPy."""

    def judge(name: str, *arguments: str, op: str = "select_experts") -> dict[str, Any]:
        usual = ("--random", "30", "--max-ids", "300", "--arrays", "numpy", "--seconds", "120")
        code = main(["verify", "--impl", name, "--op", op, "--json", *usual, *arguments])
        out, err = capfd.readouterr()
        assert err == ""
        document: dict[str, Any] = json.loads(out)
        assert code == (1 if document["findings"] else 0)
        assert document["num_calls"] == document["num_cases"] > 4
        return document

    return judge


def cases_of(document: dict[str, Any]) -> dict[str, set[str]]:
    """The cases of the table that break each rule."""
    return {
        each["rule"]: {name for name in each["cases"] if not name.startswith("random:")}
        for each in document["findings"]
    }


@pytest.mark.parametrize(
    "op",
    [
        "batched_align_block_size",
        "lora_align_block_size",
        "moe_permute",
        "moe_unpermute",
        "select_experts",
    ],
)
def test_tessera_keeps_every_contract(judged: Judge, op: str) -> None:
    document = judged(f"tessera:{op}", op=op)
    assert document["findings"] == []
    assert set(document["not_asked"]) <= {"bfloat16", "float8_e4m3fn"}


def test_a_router_of_other_arithmetic_keeps_the_contract(judged: Judge) -> None:
    document = judged("faulty_routers:router")
    assert document["findings"] == []
    assert document["not_asked"]["correction_bias"] > 10
    assert document["not_asked"]["num_valid_tokens"] > 1


def test_cases_are_listed_by_name(judged: Judge, capfd: pytest.CaptureFixture[str]) -> None:
    broken = cases_of(judged("faulty_routers:last_of_ties"))
    assert {"zeros", "infinity"} <= broken["ids"]
    assert "one_expert" not in broken["ids"]
    broken = cases_of(judged("faulty_routers:first_for_nans"))
    assert broken == {"valid_ids": {"nan_tokens"}}
    words = ("--op", "select_experts", "--arrays", "numpy", "--random", "0")
    assert main(["verify", "--impl", "faulty_routers:powers_of_two", *words]) == 1
    out = capfd.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("  cases of the table: ")]
    assert "one_row_apart" in line
    assert "BROKEN no_exception (ValueError)" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights_alone", "expected two arrays, got a value of type ndarray"),
        ("one_output", "expected two arrays, got 1 values"),
    ],
)
def test_the_form_of_several_outputs(judged: Judge, name: str, message: str) -> None:
    (finding,) = judged(f"faulty_routers:{name}")["findings"]
    assert (finding["rule"], finding["message"]) == ("output_form", message)
    assert finding["meaning"] == "A call returns two arrays, of the framework of its inputs."


def test_rows_that_are_not_in_use_may_differ(judged: Judge) -> None:
    document = judged("faulty_routers:permute", op="moe_permute")
    assert document["findings"] == []
    assert {"expert_map", "block_size", "out"} <= set(document["not_asked"])


def test_an_unstable_order(judged: Judge) -> None:
    broken = cases_of(judged("faulty_routers:permute_unstably", op="moe_permute"))
    assert set(broken) == {"inverse", "token_bits"}
    assert "odd_columns_fp32" in broken["inverse"]


def test_bit_equality_is_not_asked_of_other_routers(capfd: pytest.CaptureFixture[str]) -> None:
    words = ("--op", "select_experts", "--except", "exact_bits")
    assert main(["verify", "--impl", "faulty_routers:router", *words]) == 2
    assert "--except: expected some of no_crash, no_hang, " in capfd.readouterr().err


def test_an_op_with_the_parameters_of_vllm(judged: Judge) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    torch = ("--arrays", "torch", "--device", "cpu")
    document = judged("faulty_routers:topk_softmax", *torch)
    assert document["findings"] == []
    not_asked = document["not_asked"]
    assert {"scoring sigmoid", "scoring sqrt_softplus", "correction_bias"} <= set(not_asked)
    document = judged("faulty_routers:moe_permute", *torch, op="moe_permute")
    assert document["findings"] == []
    assert set(document["not_asked"]) == {"block_size", "out"}
