"""`tessera verify --impl` on the kinds of faults that engines have had, and on what evades it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessera
from tessera.cli import verify_implementation
from tessera.cli.main import main
from tessera.contract import cases
from tessera.tools.judge.call import Call, call_of_case
from tessera.tools.judge.classes import class_of, in_order
from tessera.tools.judge.faults import faults_of, judged_rules
from tessera.tools.judge.report import text, what_the_snippet_is
from tessera.tools.judge.worker import Outcome

FOLDER = Path(__file__).parent
Judge = Callable[..., dict[str, Any]]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Judge:
    """The document of a verdict on small calls, after a check of the exit code."""
    monkeypatch.chdir(FOLDER)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    def judge(name: str, *arguments: object, cases: str = "block_7") -> dict[str, Any]:
        usual = ("--json", "--cases", cases, "--seconds", "20")
        code = main(["verify", "--impl", f"faulty:{name}", *usual, *map(str, arguments)])
        out, err = capfd.readouterr()
        assert err == ""
        document: dict[str, Any] = json.loads(out)
        assert code == (1 if document["findings"] else 0)
        return document

    return judge


def alone(rule: str) -> tuple[str, str]:
    """Arguments that leave this rule to judge."""
    return "--except", ",".join(one.name for one in judged_rules() if one.name != rule)


def by_rule(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["rule"]: finding for finding in document["findings"]}


def printed(finding: dict[str, Any]) -> str:
    """The output of the snippet as a separate program."""
    done = subprocess.run(
        [sys.executable, "-c", finding["snippet"]],
        capture_output=True,
        text=True,
        cwd=FOLDER,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("name", "rule", "valid", "cases"),
    [
        ("first_of_a_group", "group_members", True, "block_7"),
        ("counts_from_behind", "group_members", False, "block_7"),
        ("one_block_of_threads", "group_members", True, "uint16_65536_experts"),
        ("counts_in_16_bits", "num_tokens_post_pad", True, "many_ids_one_expert"),
        ("invalid_in_group_0", "group_members", False, "block_7"),
        ("by_fours", "group_members", True, "block_7"),
        ("wants_ids", "no_exception", True, "no_tokens"),
        ("cut_off", "output_sizes", True, "one_id_one_expert_block_1"),
        ("sorted_tail_zero", "sorted_tail", True, "block_7"),
    ],
)
def test_a_fault_of_one_call(judged: Judge, name: str, rule: str, valid: bool, cases: str) -> None:
    (finding,) = judged(name, *alone(rule), cases=cases)["findings"]
    assert finding["valid_ids"] is valid
    assert (finding["alone"], finding["reproduced"], finding["shown"]) == (True, True, True)
    assert finding["num_program_calls"] == 1


def test_the_output_of_a_snippet_is_the_fault(judged: Judge) -> None:
    finding = by_rule(judged("sorted_tail_zero"))["sorted_tail"]
    assert finding["message"] == "sorted_tail: sorted_token_ids[2]: expected 2, found 0"
    assert printed(finding) == "[0 1 0]\n"


@pytest.mark.parametrize(
    ("name", "rule"),
    [("keeps_its_buffers", "padding"), ("counts_on", "num_tokens_post_pad")],
)
def test_a_fault_that_takes_an_earlier_call(judged: Judge, name: str, rule: str) -> None:
    (finding,) = judged(name, *alone(rule), "--random", 20, "--max-ids", 300)["findings"]
    assert (finding["num_program_calls"], finding["alone"], finding["shown"]) == (2, False, True)
    assert finding["snippet"].count("topk_ids = ") == 2
    # Run as a program, it leaves behind what breaks the contract; its last call alone does not.
    last_call = finding["snippet"].rpartition("topk_ids = ")[2]
    imports = finding["snippet"].partition("\n\n")[0]
    assert rule in broken(finding["snippet"], finding["call"])
    assert broken(f"{imports}\ntopk_ids = {last_call}", finding["call"]) == set()


def broken(text: str, call: dict[str, Any]) -> set[str]:
    """The rules that the last call of a program in this process breaks."""
    names: dict[str, Any] = {}
    sys.path.insert(0, str(FOLDER))
    try:
        exec(text, names)
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("faulty", None)
    result = tuple(names[name] for name in tessera.AlignedBlocks._fields)
    sizes = {name: call[name] for name in ("block_size", "num_experts")}
    return {each.rule for each in tessera.contract_violations(names["topk_ids"], result, **sizes)}


def test_an_order_that_changes_is_told_beside_its_instability() -> None:
    call = Call(np.zeros((3, 1), np.int32), block_size=1, num_experts=1)
    good = call.expected()
    turned = good | {"sorted_token_ids": np.array([1, 0, 2], np.int32)}
    wrong = good | {"sorted_token_ids": np.array([3, 0, 2], np.int32)}

    def keys(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, str]]:
        return [each.key for each in faults_of(call, Outcome(second), Outcome(first))]

    assert keys(good, good) == []
    assert keys(turned, turned) == [("stable_order", "")]
    assert keys(good, turned) == [("stable_order", ""), ("repeatable", "order")]
    assert keys(turned, good) == [("repeatable", "order")]
    assert keys(wrong, good) == [("repeatable", "")]
    assert ("repeatable", "") in keys(good, wrong)


def test_to_accept_an_unstable_order_is_not_to_accept_another_one_each_time(judged: Judge) -> None:
    accepted = ("--except", "stable_order")
    (finding,) = judged("order_in_turns", *accepted, cases="block_7_padded")["findings"]
    assert (finding["rule"], finding["kind"], finding["shown"]) == ("repeatable", "order", True)
    assert finding["message"] == "sorted_token_ids differed between two equal calls"
    assert finding["num_program_calls"] == 2
    assert printed(finding) == "[False, True, True]\n"


def test_outputs_that_a_later_call_changes(judged: Judge) -> None:
    (finding,) = judged("hands_out_its_buffers", "--random", 10)["findings"]
    assert (finding["rule"], finding["num_program_calls"]) == ("outputs_kept", 2)
    assert finding["shown"]
    assert "False" in printed(finding)


def test_a_fault_after_many_calls(judged: Judge) -> None:
    (finding,) = judged("tires", *alone("expert_tail"), "--random", 40)["findings"]
    assert finding["num_program_calls"] >= 30
    assert re.search(r"^for _ in range\(\d+\):\n    sorted", finding["snippet"], re.MULTILINE)
    assert (finding["shown"], finding["alone"]) == (True, False)


def test_a_snippet_that_does_not_show_it_is_not_said_to(
    judged: Judge, capfd: pytest.CaptureFixture[str]
) -> None:
    finding = by_rule(judged("only_forked"))["expert_tail"]
    assert (finding["reproduced"], finding["shown"]) == (True, False)
    code = main(["verify", "--impl", "faulty:only_forked", "--cases", "block_7"])
    out = capfd.readouterr().out
    assert code == 1
    assert "shown by these calls in a process forked for them, NOT by this program" in out
    assert "this shows it" not in out


def test_where_every_snippet_stands(judged: Judge) -> None:
    """The text about a snippet, depending on what is known about it."""
    said = {
        (True, True): "; tried in a new process, this shows it",
        (False, True): "; tried in a new process, this shows it",
        (None, None): "; not tried in a new process, since the time was up",
        (
            False,
            False,
        ): "; it was seen after other calls, and in a new process this does NOT show it",
    }
    for (reproduced, shown), words in said.items():
        each = {"num_program_calls": 1, "reproduced": reproduced, "shown": shown}
        assert what_the_snippet_is(each) == f"the simplest call found{words}"


def test_a_process_that_ends_as_if_all_were_well(judged: Judge) -> None:
    (finding,) = judged("quits", "--except", "no_hang")["findings"]
    assert (finding["rule"], finding["kind"]) == ("no_crash", "exit code 0")
    assert finding["shown"]
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "sleep 3600.25" not in commands.stdout


def test_an_exit_is_an_exception(judged: Judge) -> None:
    (finding,) = judged("exits")["findings"]
    assert (finding["rule"], finding["kind"]) == ("no_exception", "SystemExit")
    assert finding["shown"]


def test_arrays_that_cannot_be_judged(judged: Judge) -> None:
    (finding,) = judged("big_endian")["findings"]
    assert finding["rule"] == "output_form"
    assert finding["message"] == "expected three arrays, got sorted_token_ids of dtype >i4"


def test_small_calls_of_every_kind_come_first() -> None:
    ordered = in_order(call_of_case(case, 0) for case in cases())
    names = [class_of(call) for call in ordered]
    sizes = [name.partition(" ")[0] for name in names]
    assert sizes == sorted(sizes, key=["small", "medium", "large"].index)
    small = {name for name in names if name.startswith("small")}
    assert len(small) == 6
    assert set(names[: 4 * len(small)]) == small


def test_what_was_not_tried_is_not_called_unbroken(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(verify_implementation, "LEAST_SECONDS", 1)
    command = ["verify", "--impl", "faulty:slow", "--random", "0", "--seconds", "6", "--json"]
    assert main(command) == 3
    document = json.loads(capfd.readouterr().out)
    words = text(document)
    assert "more --seconds complete the small calls " in words
    assert "large calls with valid ids (0 of 10)" in words
    assert words.endswith("nothing broken so far, by part of the calls")
    assert document["num_calls"] < document["num_cases"] == 95
    assert sum(one["num_calls"] for one in document["classes"]) == document["num_calls"]


def test_an_import_that_takes_longer_than_there_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "late.py").write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify_implementation, "LEAST_SECONDS", 1)
    assert main(["verify", "--impl", "late:f", "--seconds", "2"]) == 2
    message = "--seconds: expected more than late:f takes to be imported, got 2"
    assert capfd.readouterr() == ("", f"tessera verify: {message}\n")
