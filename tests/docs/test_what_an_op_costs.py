"""Holds the table of `moe_sum`'s files in docs/architecture.md to the files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("contract", "include", "python", "src", "tests")
KERNELS = ("src/cpu/moe_sum", "src/cuda/moe_sum/kernel.")


def lines_of(path: Path) -> int:
    """Without the comment that a public header begins with, the contract."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return len(lines) - (lines.index("#pragma once") if "include" in path.parts else 0)


def test_the_table_has_all_files() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = page.partition("## What an op costs")[2].partition("\n## ")[0]
    tabled = {
        name: int(lines) for name, lines in re.findall(r"^\| `(.+)` \| (\d+) \|", section, re.M)
    }
    found = {
        str(path.relative_to(ROOT)): lines_of(path)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*moe_sum*")
        if path.is_file() and path.suffix != ".pyc"
    }
    found |= {
        str(path.relative_to(ROOT)): lines_of(path)
        for path in (ROOT / "src/cuda/moe_sum").iterdir()
    }
    found = {name: lines for name, lines in found.items() if not name.startswith(KERNELS)}
    tests = sum(lines for name, lines in found.items() if name.startswith("tests/"))
    said = re.search(
        r"(\d+) files; about (\d+) lines, and (\d+) of tests", " ".join(section.split())
    )
    assert said is not None
    assert int(said[1]) == len(found)
    totals = {"lines": sum(found.values()) - tests, "tests": tests}
    tabled |= {"lines": int(said[2]), "tests": int(said[3])}
    assert tabled == {
        name: pytest.approx(lines, rel=0.1) for name, lines in (found | totals).items()
    }
