"""The tuning loop of `tessera bench --log`: which windows it takes, that all have their turn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessera
from tessera.tools.bench import cpu
from tessera.tools.bench.contender import Contender, TimedCall
from tessera.tools.bench.driver import ContractBrokenError, Request, measure
from tessera.tools.bench.ops.align_block_size import OP
from tessera.tools.bench.problem import MAX_WINDOWS, Problem, make_problem
from tessera.tools.bench.shapes import Shape
from tessera.tools.bench.tuning import tuning
from tessera.tools.routing_files import Options
from tessera.tools.routing_files.several import layer_names

SHAPE = Shape(4, 8, 2, 8, skew="log", trace="a")
# Each window's ids say which window it is.
WINDOWS = np.stack([np.full((4, 2), [window, 7], np.int32) for window in range(5)])


def write_log(path: Path, tokens: Any) -> None:
    lines: list[dict[str, Any]] = [{"type": "meta", "num_experts": 64}]
    lines += [{"type": "route", "layer": 0, "topk_ids": ids} for ids in tokens.tolist()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def tokens() -> Any:
    return np.random.default_rng(0).random((1000, 64)).argsort(axis=1)[:, :3]


@pytest.mark.parametrize("warm_up", [0, 64, 50_000])
def test_windows_are_those_of_the_log_without_its_warm_up(
    tmp_path: Path, tokens: Any, warm_up: int
) -> None:
    path = tmp_path / "a.jsonl"
    repeated = np.tile([[1, 2, 3]], (warm_up, 1))
    write_log(path, np.concatenate([tokens[:500], repeated, tokens[500:]]))
    found = tuning([path], [1, 4, 256], [8], seed=3, options=Options())
    assert set(found.windows) == {("a", 1), ("a", 4), ("a", 256)}
    for (_, size), windows in found.windows.items():
        num_windows = 1000 // size
        assert windows.shape == (min(num_windows, MAX_WINDOWS), size, 3)
        every = tokens[: num_windows * size].reshape(num_windows, size, 3)
        which = [np.flatnonzero((every == window).all(axis=(1, 2)))[0] for window in windows]
        assert which == sorted(set(which))
    again = tuning([path], [1], [8], seed=3, options=Options()).windows["a", 1]
    np.testing.assert_array_equal(again, found.windows["a", 1])
    other = tuning([path], [1], [8], seed=4, options=Options()).windows["a", 1]
    assert (other != again).any()


def test_a_log_that_is_too_short_for_all_windows_is_refused(tmp_path: Path, tokens: Any) -> None:
    path = tmp_path / "a.jsonl"
    write_log(path, tokens[:7])
    message = r"^--tokens: a: no windows of 8 tokens or more: it has 7$"
    with pytest.raises(ValueError, match=message):
        tuning([path], [8, 16], None, seed=0, options=Options())


def test_layers_are_told_apart() -> None:
    one, other, third = Path("x/a.jsonl"), Path("y/a.jsonl"), Path("x/b.npy")
    assert layer_names([one], None, [(0, 4)]) == ["a"]
    layers = [(0, 0), (1, None), (0, 1)]
    assert layer_names([one, third], None, layers) == ["a layer 0", "b", "a layer 1"]
    assert layer_names([one, other], None, [(0, 4), (1, 4)]) == ["x/a.jsonl", "y/a.jsonl"]
    assert layer_names([one, third], "ranks", [(0, 4)]) == ["a and 1 more"]
    layers = [(0, 4), (0, 5)]
    assert layer_names([one, third], "ranks", layers) == [
        "a and 1 more layer 4",
        "a and 1 more layer 5",
    ]
    assert layer_names([one, third], "layers", [(0, "a"), (0, "b")]) == ["a", "b"]


def fake(run: Callable[[Problem], Any], kind: Any = "tessera") -> Contender:
    return Contender("one", kind, ("call",), lambda problem: TimedCall.of(lambda: run(problem)))


def measured(contender: Contender) -> Any:
    op = dataclasses.replace(OP, contenders=lambda device: [contender], ratios=lambda us: {})
    windows = {("a", 4): WINDOWS}
    (row,) = measure(Request("cpu", [SHAPE], ["call"], windows=windows, op=op))["rows"]
    return row


def align(problem: Problem) -> Any:
    return tessera.align_block_size(problem.topk_ids, **problem.options)


def test_every_window_is_checked_and_has_its_turn() -> None:
    taken: list[int] = []

    def run(problem: Problem) -> Any:
        taken.append(int(problem.topk_ids[0, 0]))
        return align(problem)

    measured(fake(run))
    assert taken[:15] == 3 * [0, 1, 2, 3, 4]  # once to be checked, then in turn
    assert abs(taken.count(0) - taken.count(4)) <= 1


def test_what_is_wrong_in_one_window_is_found() -> None:
    def wrong(problem: Problem) -> Any:
        outputs = align(problem)
        if problem.topk_ids[0, 0] == 3:
            outputs[1][0] += 1
        return outputs

    with pytest.raises(ContractBrokenError, match=r"^one breaks the contract on a: 4x8x2/8: "):
        measured(fake(wrong))
    row = measured(fake(wrong, "peer"))
    assert [message.partition(":")[0] for message in row["violations"]["one"]] == ["block_experts"]


@pytest.mark.parametrize("name", ["tessera/1", "tessera/2", "textbook", "thread_local_counts/1"])
def test_the_loop_in_cpp_goes_round_the_windows(name: str) -> None:
    contender = next(one for one in cpu.contenders() if one.name == name)
    problems = [make_problem(SHAPE, "cpu", 0, ids) for ids in WINDOWS]
    for num_calls, last in ((1, 0), (2, 1), (5, 4), (6, 0), (13, 2)):
        call = contender.prepare_all(problems)
        outputs = call.run()  # the outputs of the first window, in the loop too
        assert problems[0].violations(outputs) == []
        assert call.seconds(num_calls) > 0
        assert problems[last].violations(outputs) == []
