"""`bench/fused_experts_policy.py`, as far as it goes without a GPU, and its part of the page."""

# ruff: noqa: F811, for the imported fixtures

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tessera
from bench_modules import BENCH, modules  # noqa: F401, it is a fixture
from fused_experts_gpu import TINY, gpu, on_host  # noqa: F401, it is a fixture
from tessera.tools.bench.ops.fused_experts_cuda import MODELS

torch = pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture
def policy(modules: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, which measures on the host."""
    module = modules("fused_experts_policy")
    monkeypatch.setattr(module, "make_problem", on_host)
    monkeypatch.delenv("TESSERA_IMPL", raising=False)
    return module


def explained() -> list[tessera.Implementation]:
    """The implementations for the host, also those that its processor cannot run."""
    sizes = {"T": 1, "k": 2, "H": 64, "E": 8, "F": 32}
    return tessera.explain("fused_experts", **sizes, activation="silu", dtype="bfloat16")


def names() -> list[str]:
    """Those that the host can run, the policy's choice first."""
    return [one.name for one in explained() if not one.refusal]


@pytest.mark.parametrize("shape", TINY[1:3], ids=["four sets", "one set"])
def test_every_implementation_is_timed(policy: Any, gpu: SimpleNamespace, shape: Any) -> None:
    chosen, *others = names()
    gpu.us_of = {chosen: 2000.0, others[-1]: 800.0}
    row = policy.measure(shape, "cpu")
    sets = 4 if shape.num_tokens <= 64 else 1
    expected = dict.fromkeys(names(), 1000.0 / sets)
    expected |= {chosen: 2000.0 / sets, others[-1]: 800.0 / sets}
    assert row["us"] == pytest.approx(expected)
    assert (row["chosen"], row["shape"]) == (chosen, shape.name)
    assert row["refusals"].keys() == {one.name for one in explained() if one.refusal}
    assert row["failures"] == {}
    assert row["num_tokens"] == shape.num_tokens
    line = policy.verdict(row)
    assert line.startswith(
        f"{shape.name}: the fastest is {others[-1]}, the policy picks {chosen}, 150.0% slower; us: "
    )
    # The fastest first.
    assert line.partition("us: ")[2].startswith(f"{others[-1]} {800 / sets:.0f}, ")


def test_the_choice_alone_is_timed(policy: Any, gpu: SimpleNamespace) -> None:
    chosen = names()[0]
    row = policy.measure(TINY[2], "cpu", others=False)
    # Four calls, as for few tokens.
    assert (row["chosen"], row["us"]) == (chosen, {chosen: pytest.approx(250.0)})
    assert row["experts_used"] == TINY[2].num_experts  # 1024 tokens


@pytest.mark.parametrize(
    ("times", "fall", "step", "text"),
    [
        (
            [50, 110, 100, 105, 200],
            (2, 3, 0.1),
            (3, 4, 0.05),
            "a call takes at most 10.0% longer than one with more tokens (2 beside 3); from a size "
            "to the next with as many experts, the time grows by at most 5.0% (3 to 4)",
        ),
        (
            [50, 60, 60, 90, 200],
            (2, 3, 0.0),
            (3, 4, 0.5),
            "no call takes longer than one with more tokens; from a size to the next with as many "
            "experts, the time grows by at most 50.0% (3 to 4)",
        ),
    ],
    ids=["falls", "grows"],
)
def test_how_time_grows_on_a_grid(
    times: list[float],
    fall: tuple[int, int, float],
    step: tuple[int, int, float],
    text: str,
    policy: Any,
) -> None:
    # From the second size to the fourth there are as many experts.
    rows = [
        {"num_tokens": tokens, "chosen": "a", "us": {"a": us, "b": 1.0}, "experts_used": used}
        for tokens, us, used in zip(range(1, 6), times, (4, 8, 8, 8, 9), strict=True)
    ]
    assert policy.greatest_fall(rows) == (*fall[:2], pytest.approx(fall[2]))
    assert policy.greatest_step(rows) == (*step[:2], pytest.approx(step[2]))
    assert policy.growth_text(rows) == text
    assert policy.greatest_step(rows[:2]) is None
    assert policy.growth_text(rows[:2]) == "no call takes longer than one with more tokens"


def test_each_call_is_that_of_its_implementation(
    policy: Any, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str]] = []
    right = policy._OP.call

    def call(workspace: Any, num_threads: int, name: str, *arguments: Any) -> Any:
        if name == "cuda/none":
            return right(workspace, num_threads, name, *arguments)
        if workspace is None:
            return 100 + len(name)
        asked.append((len(workspace), name))
        return right(None, num_threads, name, *arguments)

    problem = on_host(TINY[1], "cpu", 0)
    with monkeypatch.context() as patch:
        patch.setattr(policy, "_OP", SimpleNamespace(call=call, inputs=policy._OP.inputs))
        calls, refusals = policy.forced_calls(problem, ["cuda/none", *names()])
        for one in calls.values():
            one.run()
    # All in one workspace, the largest; four sets of inputs.
    size = 100 + max(map(len, names()))
    assert asked == [(size, name) for name in names() for _ in range(4)]
    assert all(one.num_calls == 4 for one in calls.values())
    assert list(refusals) == ["cuda/none"]
    assert "expected cpu/" in refusals["cuda/none"]


@pytest.mark.parametrize("writes", [True, False], ids=["a wrong token", "nothing"])
def test_a_wrong_implementation_is_not_timed(
    policy: Any, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, writes: bool
) -> None:
    right = policy._OP.call
    *_, last = names()

    def call(workspace: Any, num_threads: int, name: str, *arguments: Any) -> Any:
        if name == last and not writes:
            return 0
        missing = right(workspace, num_threads, name, *arguments)
        if name == last:
            arguments[-1][-1] = 0
        return missing

    monkeypatch.setattr(policy, "_OP", SimpleNamespace(call=call, inputs=policy._OP.inputs))
    with pytest.raises(RuntimeError, match=rf"^{last} on tiny bfloat16/1024: expected at most"):
        policy.measure(TINY[2], "cpu")
    assert not gpu.replays


def test_what_is_refused(
    policy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def message(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fused_experts_policy.py", *options])
        with pytest.raises(SystemExit) as caught:
            policy.main()
        return f"{caught.value.code}: {capsys.readouterr().err}"

    assert "--tokens: expected numbers of tokens such as 1,64, got '0'" in message("--tokens", "0")
    assert "got '1,x'" in message("--tokens", "1,x")
    assert "--models: expected some of Qwen3-30B-A3B, " in message("--models", "Qwen3-30B-A3B,x")
    folder = f"--json: expected a file, got the folder {tmp_path}"
    assert folder in message("--json", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message() == ("fused_experts_policy: expected a CUDA device, torch finds none: ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TESSERA_IMPL", "cuda/mma_16")
    assert "TESSERA_IMPL: expected it unset" in message()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert message().startswith("fused_experts_policy: expected torch, which is not installed")


def row_of(shape: Any, chosen: str, us: dict[str, float]) -> dict[str, Any]:
    return {
        "shape": shape.name,
        **dataclasses.asdict(shape),
        "chosen": chosen,
        "experts_used": shape.num_experts,
        "us": us,
        "spread_us": dict.fromkeys(us, 0.1),
        "refusals": {},
        "failures": {},
    }


# 3% slower is as good, 4% is not.
US = [
    {"cuda/mma_16": 103.0, "cuda/mma_32": 100.0},
    {"cuda/mma_16": 104.0, "cuda/mma_32": 100.0},
    {"cuda/mma_16": 100.0, "cuda/mma_32": 104.0},
]


ABOUT = {
    "commit": "0123456789abcdef",
    "modified": False,
    "date": "2026-01-02",
    "machine": "a processor",
    "build": "a compiler",
    "gpu": "NVIDIA H100",
    "cuda": "13.0",
    "torch": "2.11",
}


@pytest.fixture
def run(
    policy: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[Path, str]]:
    """Runs the script with made-up rows, and gives its file and what it prints."""

    def of(measure: Callable[..., Any], *options: str) -> tuple[Path, str]:
        path = tmp_path / "h100" / "fused_experts_policy.json"
        monkeypatch.setattr(policy, "measure", measure)
        monkeypatch.setattr(policy, "description", lambda device, commit: ABOUT)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(sys, "argv", ["x", *options, "--json", str(path)])
        policy.main()
        return path, capsys.readouterr().out

    return of


@pytest.fixture
def sections(modules: Callable[[str], Any]) -> Callable[[], list[str]]:
    """The sections of the page."""
    of: Callable[[], list[str]] = modules("page_fused_experts_policy").fused_experts_policy_sections
    return of


def test_results_are_written_and_shown(
    run: Callable[..., tuple[Path, str]], sections: Callable[[], list[str]]
) -> None:
    assert sections() == []
    times = iter(2 * US)
    path, printed = run(
        lambda shape: row_of(shape, "cuda/mma_16", next(times)),
        *("--tokens", "1,16,24", "--models", "Mixtral-8x7B,Qwen3-30B-A3B"),
    )

    *lines, total, wrote = printed.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"{model} bfloat16/{tokens}"
        for model in ("Mixtral-8x7B", "Qwen3-30B-A3B")
        for tokens in (1, 16, 24)
    ]
    assert "the policy picks cuda/mma_16, 3.0% slower; us: cuda/mma_32 100, " in lines[0]
    assert "the policy picks the fastest, cuda/mma_16; us: cuda/mma_16 100, " in lines[2]
    assert total == ("the policy's choice is more than 3% slower than the fastest on 2 of 6 shapes")
    assert wrote == f"wrote {path}"
    document = json.loads(path.read_text())
    assert document.items() >= ABOUT.items()
    assert "CUDA graph" in document["methods"]["burst"]
    assert [row["num_tokens"] for row in document["rows"]] == 2 * [1, 16, 24]

    (text,) = sections()
    assert "## The implementations of fused_experts on the NVIDIA H100\n" in text
    assert "over 3% longer: on 2 of 6 shapes" in text
    assert "commit 0123456789; 2026-01-02" in text
    mixtral, qwen = text.split("\n### ")[1:]
    assert mixtral.startswith("Mixtral-8x7B\n") and qwen.startswith("Qwen3-30B-A3B\n")
    assert mixtral.splitlines()[4:] == [
        "| 1 | 0.25 | `cuda/mma_16` | 103 | - | - | - |",
        "| 16 | 4 | `cuda/mma_16` | 104 | `cuda/mma_32` | 100 | 4% |",
        "| 24 | 6 | `cuda/mma_16` | 100 | - | - | - |",
    ]
    assert "| 24 | 1.5 | `cuda/mma_16` |" in qwen


def test_a_fine_grid_is_measured_where_no_tokens_are_chosen(
    policy: Any, run: Callable[..., tuple[Path, str]], sections: Callable[[], list[str]]
) -> None:
    def measure(shape: Any, *, others: bool = True) -> dict[str, Any]:
        us = {7: 212.0, 8: 200.0}.get(shape.num_tokens, 100.0 + shape.num_tokens)
        return row_of(shape, "a", {"a": us, "b": 1e3} if others else {"a": us})

    path, printed = run(measure, "--models", "Mixtral-8x7B")
    document = json.loads(path.read_text())
    assert [row["num_tokens"] for row in document["rows"]] == list(policy.TOKENS)
    assert [row["num_tokens"] for row in document["grid"]] == list(policy.GRID)
    assert all(row["us"].keys() == {"a"} for row in document["grid"])
    growth = (
        "a call takes at most 94.5% longer than one with more tokens (7 beside 9); from a size to "
        "the next with as many experts, the time grows by at most 100.0% (6 to 7)"
    )
    assert f"Mixtral-8x7B: {growth}\n" in printed
    (text,) = sections()
    assert f"\nOn 56 sizes from 1 to 512 tokens {growth}.\n" in text


def test_the_usual_shapes_are_those_of_the_models(policy: Any) -> None:
    assert policy.TOKENS[0] == 1
    assert policy.TOKENS[-1] == 16384
    assert policy.GRID[:16] == tuple(range(1, 17))
    assert all(a < b <= 1.125 * a for a, b in itertools.pairwise(policy.GRID[15:]))
    assert policy.GRID[-1] == 512
    assert policy._models(",".join(MODELS)) == list(MODELS)


def test_the_page_has_these_sections(
    modules: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = modules("performance_page")
    monkeypatch.setattr(modules("page_text"), "RESULTS", BENCH / "results")
    monkeypatch.setattr(page, "fused_experts_policy_sections", lambda: ["## the section"])
    assert "\n## the section\n" in page.page()
