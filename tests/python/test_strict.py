"""Strict mode: what validated calls report, when, and that nothing of it is lost."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import tessera
from foreign_arrays import SpeaksDlpack
from programs import run_program
from random_calls import calls
from strict_device import defer
from tessera import strict
from tessera._frameworks import FRAMEWORKS

OPTIONS: dict[str, Any] = {"block_size": 4, "num_experts": 64}
GOOD = np.array([[0, 1], [2, 63]], np.int32)
BAD = np.array([[0, 1], [99, 2], [-1, 63]], np.int32)
BAD_MESSAGE = (
    "align_block_size: topk_ids[2]: expected an id in [0, 64), got 99 "
    "(token 1, slot 0; 2 invalid ids in this call)"
)


@pytest.fixture(autouse=True)
def nothing_unread() -> Iterator[None]:
    tessera.check(raise_invalid=False)
    yield
    tessera.check(raise_invalid=False)


def message_of_check() -> str:
    with pytest.raises(tessera.InvalidRoutingError, match="align_block_size: ") as caught:
        tessera.check()
    return str(caught.value)


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    defer(monkeypatch)


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax", "dlpack"])
def test_calls_on_the_host_raise_at_once(framework: str) -> None:
    ids: Any = BAD
    if framework == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        ids = torch.from_numpy(BAD)
    elif framework == "jax":
        jax = pytest.importorskip("jax", reason="jax is not installed")
        ids = jax.device_put(BAD, jax.devices("cpu")[0])
    elif framework == "dlpack":
        ids = SpeaksDlpack(BAD)
    out = tuple(np.full(length, 77, np.int32) for length in (24, 6, 1))
    for _ in range(2):
        with pytest.raises(tessera.InvalidRoutingError) as caught:
            tessera.align_block_size(ids, validate=True, out=out, **OPTIONS)
        if framework == "dlpack":  # of unknown shape
            assert str(caught.value).startswith("align_block_size: topk_ids[2]: expected an id in ")
        else:
            assert str(caught.value) == BAD_MESSAGE
        assert out[2].tolist() == [16]
        assert tessera.check() == 0


def test_check_raises_once(deferred: None) -> None:
    found = tessera.align_block_size(BAD, validate=True, **OPTIONS)
    assert found.num_tokens_post_pad.tolist() == [16]
    assert message_of_check() == BAD_MESSAGE
    assert tessera.check() == 0


def test_count_without_an_exception(deferred: None) -> None:
    entries = np.arange(64, dtype=np.int32)
    entries[3:5] = [64, -2]
    tessera.align_block_size(BAD, expert_map=entries, validate=True, **OPTIONS)
    tessera.align_block_size(BAD, validate=True, **OPTIONS)
    assert tessera.check(raise_invalid=False) == 2 + 2 + 2
    assert tessera.check() == 0


def test_good_calls_report_nothing() -> None:
    remote = np.full(64, -1, np.int32)
    tessera.align_block_size(GOOD, expert_map=remote, validate=True, **OPTIONS)
    tessera.align_block_size(GOOD, validate="now", **OPTIONS)
    tessera.align_block_size(BAD, **OPTIONS)
    tessera.align_block_size(BAD, validate=False, **OPTIONS)
    assert tessera.check() == 0


def test_the_first_in_the_order_of_the_calls(deferred: None) -> None:
    tessera.align_block_size(GOOD, validate=True, **OPTIONS)
    tessera.align_block_size(BAD, validate=True, **OPTIONS)
    tessera.align_block_size(np.array([77]), validate=True, **OPTIONS)
    assert message_of_check() == BAD_MESSAGE


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([5, 64], np.uint8), "topk_ids[1]: expected an id in [0, 64), got 64 (1 invalid"),
        (
            np.array([[2**64 - 1]], np.uint64),
            f"topk_ids[0]: expected an id in [0, 64), got {2**64 - 1} (token 0, slot 0; 1 invalid",
        ),
        (
            np.array([[-(2**63)]]),
            f"topk_ids[0]: expected an id in [0, 64), got {-(2**63)} (token 0, slot 0; 1 invalid",
        ),
        (
            np.array([[[1, 2], [3, 4]], [[5, 6], [7, -3]]], np.int8),
            "topk_ids[7]: expected an id in [0, 64), got -3 (token 3, slot 1; 1 invalid id in",
        ),
    ],
)
def test_where_and_what(ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match="align_block_size: ") as caught:
        tessera.align_block_size(ids, validate="now", **OPTIONS)
    assert str(caught.value).startswith(f"align_block_size: {message}")


def test_map_entries(deferred: None) -> None:
    entries = np.arange(64, dtype=np.int32)
    entries[5] = 77
    entries[9] = -2
    for ignores in (False, True):
        tessera.align_block_size(
            GOOD, expert_map=entries, ignore_invalid_experts=ignores, validate=True, **OPTIONS
        )
        assert message_of_check() == (
            "align_block_size: expert_map[5]: expected -1 or a local expert in [0, 64), got 77 "
            "(2 invalid entries in this call)"
        )


def test_pairs_of_the_filtered_group_are_valid() -> None:
    tessera.align_block_size(np.array([[0, -1]]), filtered_group=True, validate="now", **OPTIONS)
    with pytest.raises(ValueError, match=r"topk_ids\[1\]: expected an id in \[-1, 64\), got -2 "):
        tessera.align_block_size(
            np.array([[-1, -2]]), filtered_group=True, validate="now", **OPTIONS
        )


def test_at_once_raises_after_the_outputs_are_written_and_is_told_once() -> None:
    out = tuple(np.full(length, 77, np.int32) for length in (24, 6, 1))
    with pytest.raises(tessera.InvalidRoutingError, match="topk_ids") as caught:
        tessera.align_block_size(BAD, validate="now", out=out, **OPTIONS)
    assert str(caught.value) == BAD_MESSAGE
    assert out[2].tolist() == [16]
    assert tessera.check() == 0
    tessera.align_block_size(GOOD, validate="now", **OPTIONS)


@settings(max_examples=100, deadline=None)
@given(calls())
def test_counts_what_the_contract_calls_invalid(call: tuple[Any, dict[str, Any], int]) -> None:
    topk_ids, options, _ = call
    num_experts, flat = options["num_experts"], topk_ids.reshape(-1).tolist()
    lowest = -1 if options["filtered_group"] else 0
    invalid = [i for i, expert in enumerate(flat) if not lowest <= expert < num_experts]
    entries = [] if options["expert_map"] is None else options["expert_map"].tolist()
    invalid_entries = [e for e, local in enumerate(entries) if not -1 <= local < num_experts]

    try:
        tessera.align_block_size(topk_ids, validate=True, **options)
        assert not invalid
        assert not invalid_entries
    except tessera.InvalidRoutingError as error:
        first = f"topk_ids[{invalid[0]}]" if invalid else f"expert_map[{invalid_entries[0]}]"
        got = flat[invalid[0]] if invalid else entries[invalid_entries[0]]
        assert str(error).startswith(f"align_block_size: {first}: expected ")
        assert f", got {got} (" in str(error)
        assert f"{len(invalid) or len(invalid_entries)} invalid " in str(error)


def test_many_unread_reports_take_little_memory_and_none_is_lost(deferred: None) -> None:
    tessera.align_block_size(BAD, validate=True, **OPTIONS)
    for _ in range(3 * strict.MAX_UNREAD):
        tessera.align_block_size(np.array([[1, 64]]), validate=True, **OPTIONS)
    assert len(strict._reports.submitted) <= strict.MAX_UNREAD
    with pytest.raises(ValueError, match="topk_ids") as caught:
        tessera.check()
    assert str(caught.value) == BAD_MESSAGE
    pieces = [row for rows in strict._reports.free.values() for row in rows]
    assert all(not row.array.any() for row in pieces)


def test_a_refused_call_reports_nothing_and_keeps_no_memory() -> None:
    tessera.align_block_size(GOOD, validate=True, **OPTIONS)
    tessera.check()
    before = sum(map(len, strict._reports.free.values()))
    with pytest.raises(ValueError, match="block_size"):
        tessera.align_block_size(BAD, block_size=0, num_experts=64, validate=True)
    with pytest.raises(ValueError, match="expert_map"):
        tessera.align_block_size(BAD, expert_map=GOOD, validate=True, **OPTIONS)
    assert tessera.check() == 0
    assert sum(map(len, strict._reports.free.values())) == before


def test_calls_and_checks_from_many_threads(deferred: None) -> None:
    found = []

    def work() -> None:
        for _ in range(300):
            tessera.align_block_size(BAD, validate=True, **OPTIONS)
        found.append(tessera.check(raise_invalid=False))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found) + tessera.check(raise_invalid=False) == 6 * 300 * 2


def test_inference_mode_and_after_it() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with torch.inference_mode(), pytest.raises(tessera.InvalidRoutingError) as caught:
        tessera.align_block_size(torch.from_numpy(BAD), validate=True, **OPTIONS)
    assert str(caught.value) == BAD_MESSAGE
    tessera.align_block_size(torch.from_numpy(GOOD), validate=True, **OPTIONS)


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """A list that says whether NumPy's calls are being captured into a graph."""
    state = [False]
    monkeypatch.setattr(strict, "_reports", strict._Reports())
    monkeypatch.setitem(
        FRAMEWORKS, np.ndarray, FRAMEWORKS[np.ndarray].but(is_capturing=lambda _: state[0])
    )
    yield state
    state[0] = False


def test_captured_calls_report_at_every_replay(capture: list[bool]) -> None:
    tessera.align_block_size(GOOD, validate=True, **OPTIONS)
    capture[0] = True
    tessera.align_block_size(BAD, validate=True, **OPTIONS)
    with pytest.raises(RuntimeError, match="expected no graph to be captured"):
        tessera.check()
    capture[0] = False
    assert message_of_check() == BAD_MESSAGE
    assert tessera.check() == 0
    (kept,) = strict._reports.captured
    for _ in range(2 * strict.MAX_UNREAD):
        tessera.align_block_size(GOOD, validate=True, **OPTIONS)
    kept.array[:] = [1, 3, -5, 0, -1, 0]  # what a replay writes
    assert (
        "topk_ids[3]: expected an id in [0, 64), got -5 (token 1, slot 1; 1" in message_of_check()
    )
    assert tessera.check() == 0


def test_capture_needs_memory_made_before_it(capture: list[bool]) -> None:
    capture[0] = True
    with pytest.raises(ValueError, match="validate: expected a validated call on "):
        tessera.align_block_size(GOOD, validate=True, **OPTIONS)
    with pytest.raises(ValueError, match="validate: expected a bool while a graph is being captu"):
        tessera.align_block_size(GOOD, validate="now", **OPTIONS)


@pytest.mark.parametrize("validate", [True, 1, np.True_, np.int64(1)], ids=repr)
def test_flags_of_python_and_numpy(validate: Any) -> None:
    with pytest.raises(tessera.InvalidRoutingError):
        tessera.align_block_size(BAD, validate=validate, **OPTIONS)


@pytest.mark.parametrize("validate", [False, 0, np.False_, np.int64(0)], ids=repr)
def test_flags_that_are_off(validate: Any) -> None:
    tessera.align_block_size(BAD, validate=validate, **OPTIONS)


@pytest.mark.parametrize(
    "validate",
    ["yes", "later", "", 2, 0.5, 0.0, [True], [], (), {}, np.array([0, 1]), np.float32(0)],
    ids=repr,
)
def test_what_is_no_flag_is_refused(validate: Any) -> None:
    with pytest.raises(ValueError, match="align_block_size: validate: expected a bool or 'now'"):
        tessera.align_block_size(GOOD, validate=validate, **OPTIONS)


CALLS = """
import numpy as np, tessera
bad = np.array([[0, 9]])
tessera.align_block_size(bad, block_size=4, num_experts=4, validate=False)
print(tessera.check(raise_invalid=False))
tessera.align_block_size(bad, block_size=4, num_experts=4)
print(tessera.check(raise_invalid=False))
"""


@pytest.mark.parametrize(("text", "found"), [("", "0\n0\n"), ("0", "0\n0\n")])
def test_the_environment_decides_for_calls_that_do_not(text: str, found: str) -> None:
    assert run_program([sys.executable, "-c", CALLS], TESSERA_VALIDATE=text).stdout == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "topk_ids[1]: expected an id in [0, 4), got 9 (token 0, slot 1; 1 invalid id in"),
        ("now", "topk_ids[1]: expected an id in [0, 4), got 9 (token 0, slot 1; 1 invalid id in"),
        ("yes", "validate: expected a bool or 'now' (TESSERA_VALIDATE: 0, 1 or now), got 'yes'"),
    ],
)
def test_the_environment_makes_calls_raise(text: str, message: str) -> None:
    done = run_program([sys.executable, "-c", CALLS], TESSERA_VALIDATE=text)
    assert done.stdout == "0\n"
    last = done.stderr.strip().splitlines()[-1]
    assert f"Error: align_block_size: {message}" in last
