"""Holds facts that the pages copy to their source."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("op", ["align_block_size", "batched_align_block_size"])
def test_rules_on_the_page_are_the_checkers(op: str) -> None:
    """The op page's table of rules says what the checker's header says, in the same order."""
    header = (ROOT / f"contract/{op}_checker.hpp").read_text(encoding="utf-8")
    listed = header.partition("Rules[] = {")[2].partition("};")[0]
    rules = re.findall(r'\{"(\w+)",\s*"([^"]+)"\}', listed)
    page = (ROOT / f"docs/ops/{op}.md").read_text(encoding="utf-8")
    section = page.partition("\n## Rules\n")[2].partition("\n## ")[0]
    table = re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE)
    assert rules
    assert [(name, meaning.replace("`", "")) for name, meaning in table] == rules
