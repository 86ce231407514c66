"""Runs every Python block of the README and the docs, and holds copied facts to their source.

Blocks are run on their own, each in a fresh namespace and an empty folder, with their asserts. One
that imports a framework which is not installed is skipped.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = ("cupy", "jax", "torch")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks() -> list[object]:
    """One pytest parameter (page, first line, code) for each block."""
    blocks = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(1)) + 1
            name = f"{page.relative_to(ROOT)}:{line}"
            blocks.append(pytest.param(page, line, match[1], id=name))
    return blocks


@pytest.mark.parametrize(("page", "line", "code"), python_blocks())
def test_block_runs(
    page: Path, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block runs through; blank lines before the code make tracebacks point into the page."""
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), {"__name__": "__main__"})
    except ModuleNotFoundError as error:
        if error.name not in FRAMEWORKS:
            raise
        pytest.skip(f"{error.name} is not installed")


def test_pages_have_blocks() -> None:
    """The two pages that newcomers copy from are among those that are run."""
    pages = {parameter.values[0].name for parameter in python_blocks()}
    assert {"README.md", "align_block_size.md"} <= pages


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
