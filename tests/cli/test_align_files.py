"""Files that `tessera align` refuses for their ids and numbers: the message names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessera
from tessera.cli.main import main

Refused = Callable[..., str]


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Refused:
    """The one line on stderr of a command on a file with these arrays."""
    monkeypatch.chdir(tmp_path)

    def line(**arrays: Any) -> str:
        np.savez("ids.npz", **arrays)
        assert main(["align", "ids.npz"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err.removesuffix("\n")

    return line


@pytest.mark.parametrize(
    ("ids", "got"), [(["a"], "<U1"), ([0.5], "float64"), ([np.nan], "float64"), ([True], "bool")]
)
def test_ids_that_are_no_integers(refused: Refused, ids: list[Any], got: str) -> None:
    assert refused(topk_ids=np.array(ids)) == (
        f"tessera align: ids.npz: topk_ids: expected integers, got {got}"
    )


@pytest.mark.parametrize("largest", [2**30, 2**40, 2**63 - 2])
def test_ids_that_are_too_large_for_experts(refused: Refused, largest: int) -> None:
    assert refused(topk_ids=np.array([0, 1, largest])) == (
        f"tessera align: ids.npz: row 2: topk_ids: expected ids below 65536, got {largest}: give "
        "--experts for larger ids to be left out"
    )
    assert main(["align", "ids.npz", "--experts", "4"]) == 0


def test_a_number_of_experts_that_is_too_large(refused: Refused) -> None:
    assert refused(topk_ids=np.array([0]), num_experts=2**40) == (
        f"tessera align: ids.npz: num_experts: expected an integer in [1, 65536], got {2**40}"
    )


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    def fails(*args: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(tessera, "align_block_size", fails)
    assert refused(topk_ids=np.array([0, 6])) == (
        "tessera align: ids.npz: not enough memory for 7 experts and blocks of 128 slots"
    )
