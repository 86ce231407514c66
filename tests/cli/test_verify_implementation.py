"""`tessera verify --impl`: planted faults, each found with a small call; forms; usage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tessera.cli.main import main

FOLDER = Path(__file__).parent

Run = Callable[..., "Done"]
Judge = Callable[..., dict[str, Any]]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True)
def in_folder_of_faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of the current folder can be judged."""
    monkeypatch.chdir(FOLDER)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """`tessera verify --impl NAME ARGUMENTS` in this process, which has loaded what is slow."""

    def run_main(name: str, *arguments: object) -> Done:
        code = main(["verify", "--impl", name, *map(str, arguments)])
        return Done(code, *capfd.readouterr())

    return run_main


@pytest.fixture
def judged(run: Run) -> Judge:
    """The document of a verdict on small calls; every snippet was seen to show it."""

    def judge(name: str, *arguments: object) -> dict[str, Any]:
        usual = ("--json", "--cases", "block_7", "--max-ids", 300, "--seconds", 120)
        done = run(f"faulty:{name}", *usual, *arguments)
        assert done.stderr == ""
        document: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (1 if document["findings"] else 0)
        assert all(finding["shown"] for finding in document["findings"])
        return document

    return judge


def only(document: dict[str, Any], rule: str) -> dict[str, Any]:
    """The finding of this rule, if no other rule is broken."""
    (finding,) = document["findings"]
    assert finding["rule"] == rule
    found: dict[str, Any] = finding
    return found


def size(finding: dict[str, Any]) -> tuple[int, int, int]:
    call = finding["call"]
    return call["num_tokens"] * call["top_k"], call["num_experts"], call["block_size"]


def executed(finding: dict[str, Any]) -> dict[str, Any]:
    """What the snippet leaves behind."""
    names: dict[str, Any] = {}
    sys.path.insert(0, str(FOLDER))
    try:
        exec(finding["snippet"], names)
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("faulty", None)
    return names


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("right", "tessera"),
        ("Holder.right", "tessera"),
        ("script", "script"),
    ],
)
def test_nothing_is_broken(judged: Judge, name: str, form: str) -> None:
    document = judged(name, "--random", 60)
    assert document["findings"] == []
    assert document["form"] == form
    assert document["num_calls"] == document["num_cases"] > 50
    assert 0 < document["num_valid_calls"] < document["num_calls"]
    # What a form does not have is not asked, and counted.
    assert document["not_asked"]["expert_map"] > 0


def test_tessera_itself_takes_every_option(run: Run) -> None:
    done = run("tessera:align_block_size", "--json", "--random", 20, "--max-ids", 300)
    document = json.loads(done.stdout)
    assert (done.returncode, document["findings"], document["not_asked"]) == (0, [], {})
    # Every class of calls was made, small ones of every kind first.
    classes = document["classes"]
    assert all(one["num_calls"] == one["num_cases"] > 0 for one in classes)
    assert [one["name"] for one in classes][:3] == [
        "small calls with invalid ids",
        "small calls with an expert map",
        "small calls with ids of another type",
    ]
    assert classes[-1]["name"] == "large calls with valid ids"


def test_what_takes_any_keyword_takes_every_option(judged: Judge) -> None:
    document = judged("everything", "--form", "tessera", "--random", 20)
    assert (document["findings"], document["not_asked"]) == ([], {})


@pytest.mark.parametrize("form", ["sglang", "sglang_op"])
def test_forms_of_sglang(judged: Judge, form: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    document = judged(form, "--random", 20, "--arrays", "torch", "--device", "cpu")
    assert document["findings"] == []
    assert document["form"] == form.replace("_", "-")
    assert "filtered_group" not in document["not_asked"]


def test_unstable_order(judged: Judge) -> None:
    finding = only(judged("unstable", "--random", 20), "stable_order")
    assert size(finding) == (40, 1, 2)
    assert finding["valid_ids"]
    assert 0 < finding["num_valid_calls"] < finding["num_calls"]
    assert finding["meaning"] == "Inside a group the indices ascend."
    assert finding["outputs"]["sorted_token_ids"]["found"].startswith("int32[41] 1, 0, 3, 2")
    assert executed(finding)["sorted_token_ids"][:2].tolist() == [1, 0]


def test_wrong_tail(judged: Judge) -> None:
    finding = only(judged("tail_zero", "--random", 20), "expert_tail")
    # One id of two fills the first of two blocks at the most.
    assert size(finding) == (2, 1, 2)
    assert finding["outputs"] == {
        "expert_ids": {"expected": "int32[2] 0, -1", "found": "int32[2] 0, 0"}
    }


def test_missing_padding_and_a_rule_accepted(judged: Judge) -> None:
    numpy = ("--random", 20, "--arrays", "numpy")
    document = judged("no_padding", *numpy)
    assert document["form"] == "vllm"
    assert [each["rule"] for each in document["findings"]] == ["padding", "sorted_tail"]
    assert [size(each) for each in document["findings"]] == [(1, 1, 2), (2, 1, 2)]
    accepted = judged("no_padding", *numpy, "--except", "sorted_tail")
    assert only(accepted, "padding")
    assert accepted["except"] == ["sorted_tail"]


def test_int64_outputs(judged: Judge) -> None:
    finding = only(judged("int64", "--random", 5), "output_sizes")
    assert size(finding) == (0, 1, 1)
    expected = "expected a contiguous int32[0] or a longer one, got int64[0]"
    assert finding["message"] == f"output_sizes: sorted_token_ids: {expected}"


def test_two_outputs(judged: Judge) -> None:
    finding = only(judged("two", "--random", 5), "output_form")
    assert finding["message"] == "expected three arrays, got 2 values"


def test_changed_inputs(judged: Judge) -> None:
    finding = only(judged("sorts_its_input", "--random", 5), "inputs_kept")
    assert size(finding)[0] == 2
    assert finding["message"] == "topk_ids was written to"


def test_outputs_that_change(judged: Judge) -> None:
    document = judged("random", "--random", 5)
    rules = {each["rule"]: each for each in document["findings"]}
    assert "repeatable" in rules
    assert size(rules["repeatable"])[0] == 1


def test_writes_past_the_end(judged: Judge) -> None:
    document = judged("past_the_end", "--random", 20, "--arrays", "numpy")
    finding = only(document, "memory_kept")
    assert document["form"] == "vllm-op"
    assert size(finding) == (0, 1, 1)
    assert finding["message"] == "memory beside expert_ids was written"
    # The op leaves out the pairs of remote experts: it is not asked to keep them.
    assert document["not_asked"]["expert_map"] > 0


def test_a_dead_process(judged: Judge) -> None:
    finding = only(judged("aborts", "--random", 20), "no_crash")
    assert size(finding) == (1, 1, 1)
    assert "[[-1]]" in finding["snippet"]
    assert finding["message"] == "the process died with SIGABRT: free(): invalid pointer"
    assert (finding["valid_ids"], finding["num_valid_calls"]) == (False, 0)
    assert finding["alone"]


def test_a_process_that_hangs(judged: Judge) -> None:
    finding = only(judged("hangs", "--random", 5, "--seconds", 20), "no_hang")
    assert size(finding)[1] == 13
    assert finding["message"].startswith("the call was ended after ")


def test_an_exception_as_text(run: Run) -> None:
    done = run("faulty:raises", "--random", 5, "--max-ids", 300)
    assert done.returncode == 1
    assert "BROKEN no_exception (KeyError): A call in the op's domain raises nothing" in done.stdout
    assert "raises(topk_ids, block_size=1, num_experts=6)\n" in done.stdout
    assert "raised KeyError: 'too many experts'" in done.stdout
    assert "not asked, since the function has no such parameter: " in done.stdout
    assert done.stdout.rstrip().endswith("seed 0: 1 rule broken")


def test_arrays_that_it_does_not_take(run: Run) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    small = ("--cases", "1x8x2/16", "--random", 3, "--max-ids", 10)
    done = run("faulty:of_numpy", *small)
    assert "it was given torch arrays; --arrays numpy gives others" in done.stdout
    assert done.returncode == 1
    done = run("faulty:of_numpy", *small, "--arrays", "numpy")
    assert (done.returncode, "--arrays" in done.stdout) == (0, False)
    # One that takes them, and has arrays of NumPy to give back.
    done = run("faulty:of_other_arrays", *small)
    assert "expected three arrays, got sorted_token_ids of type ndarray" in done.stdout
    assert "it was given torch arrays; --arrays numpy gives others" in done.stdout


def test_the_same_seed_gives_the_same_findings(judged: Judge) -> None:
    first, second = (judged("raises", "--random", 5, "--seed", 4) for _ in range(2))
    assert first == second
    assert first["seed"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["faulty"], "--impl: expected module:function, got 'faulty'"),
        (["absent:f"], "--impl: absent cannot be imported: ModuleNotFoundError: No module named"),
        (
            ["faulty.py:right"],
            "--impl: expected a module's name, got that of a file, faulty.py: give faulty:right",
        ),
        (["absent.py:f"], "got that of a file, absent.py: there is no such file"),
        (["faulty:rihgt"], "--impl: faulty has no rihgt; it has "),
        (["faulty:right.absent"], "--impl: faulty has no right.absent; it has no function"),
        (["faulty:not_a_function"], "expected faulty:not_a_function to be a function, got int"),
        (
            ["faulty:order_unknown"],
            "--form: cannot be detected from the parameters (ids, num_experts",
        ),
        (["faulty:right", "--form", "x"], "--form: expected one of tessera (topk_ids, *, block_si"),
        (["faulty:right", "--except", "speed"], "--except: expected some of no_crash, no_hang, "),
        (["faulty:right", "--seconds", "0"], "--seconds: expected 20 or more, got 0"),
        (["faulty:right", "--seconds", "19.9"], "--seconds: expected 20 or more, got 19.9"),
        (["faulty:right", "--seconds", "nan"], "--seconds: expected 20 or more, got nan"),
        (["faulty:right", "--random", "0", "--max-ids", "5"], "--max-ids: applies to random "),
        (["faulty:right", "--device", "gpu"], "--device: expected auto, cpu, cuda or cuda:N, got"),
        (["faulty:right", "--implementation", "cpu/reference"], "--implementation: names one of"),
    ],
)
def test_bad_usage(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tessera verify: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_options_of_impl_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--form", "vllm"]) == 2
    assert capsys.readouterr().err == "tessera verify: --form: expected --impl beside it\n"


def test_an_import_that_dies(tmp_path: Path) -> None:
    """As the program, in another folder."""
    (tmp_path / "dies.py").write_text("import os\nos.abort()\n")
    command = [sys.executable, "-m", "tessera", "verify", "--impl", "dies:f"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "dies:f cannot be imported: its process died with SIGABRT" in done.stderr


def test_the_current_folder_is_left_as_it_is(tmp_path: Path) -> None:
    """Making a call small leaves none of hypothesis's files, which depend on the program's own."""
    (tmp_path / "faulty.py").write_bytes((FOLDER / "faulty.py").read_bytes())
    program = Path(sys.executable).with_name("tessera")
    command = [program, "verify", "--impl", "faulty:tail_zero", "--cases", "block_7", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert size(only(json.loads(done.stdout), "expert_tail")) == (2, 1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["faulty.py"]


def test_without_hypothesis(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tessera.cli.main import main

    for name in ("judging", "shrinking"):
        monkeypatch.delitem(sys.modules, f"tessera.tools.judge.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    assert main(["verify", "--impl", "faulty:right"]) == 2
    assert "hypothesis is not installed: pip install hypothesis, or pip install '.[verify]'" in (
        capsys.readouterr().err
    )
