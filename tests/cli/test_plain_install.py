"""The command line after `pip install .`: what runs without extras, and which it asks for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

LOG = '{"type": "meta", "model_id": "m", "num_experts": 4}\n' + "".join(
    f'{{"type": "route", "layer": 0, "topk_ids": [{row % 3}, 3]}}\n' for row in range(9)
)
# `tessera` where these modules cannot be imported.
PROGRAM = """
import json, sys
hidden = set(json.loads(sys.argv.pop(1)))
class Finder:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder)
from tessera.cli.main import main
sys.exit(main())
"""


def hidden_modules() -> list[str]:
    """All installed modules that Tessera does not require, not even indirectly."""
    required, unread = set(), ["tessera"]
    while unread:
        name = re.sub(r"[-_.]+", "-", unread.pop()).lower()
        if name in required:
            continue
        required.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for other systems or versions of Python
            continue
        unread += [re.split(r"[^\w.-]", one)[0] for one in requirements if "extra ==" not in one]
    return [
        module
        for module, names in metadata.packages_distributions().items()
        if not {re.sub(r"[-_.]+", "-", name).lower() for name in names} & required
    ]


HIDDEN = json.dumps(hidden_modules())


def run(folder: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "log.jsonl").write_text(LOG)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, HIDDEN, *arguments.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_what_is_hidden() -> None:
    """The extras' modules and their like, and none of what is required."""
    hidden = set(json.loads(HIDDEN))
    assert {"jinja2", "hypothesis", "pytest"} <= hidden
    assert not {"tessera", "numpy", "tvm_ffi", "msgspec", "rich", "typing_extensions"} & hidden


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("info", "backend cpu"),
        ("align --tokens 9 --output a.npz", "wrote a.npz"),
        ("align log.jsonl", "log.jsonl (m)"),
        ("inspect log.jsonl", "m: 4 experts, top 2, 1 layer"),
        ("inspect log.jsonl --json", '"model_id": "m"'),
        ("inspect log.jsonl --pictures pictures", "wrote pictures/load.svg"),
        ("verify --cases block_7", "0 failed"),
    ],
)
def test_commands_that_need_no_extra(arguments: str, shown: str, tmp_path: Path) -> None:
    done = run(tmp_path, arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert shown in done.stdout


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        ("inspect log.jsonl --html a.html", "jinja2", "report"),
        ("verify --impl json:loads", "hypothesis", "verify"),
        ("bench --device cpu --tokens 1 --plot a.png", "matplotlib", "bench"),
    ],
)
def test_a_missing_extra_is_named(arguments: str, module: str, extra: str, tmp_path: Path) -> None:
    """In one sentence, and before any work."""
    done = run(tmp_path, arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith(
        f": {module} is not installed: pip install {module}, or pip install '.[{extra}]' in a "
        "checkout of Tessera"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_missing_log_is_named_before_a_missing_extra(tmp_path: Path) -> None:
    done = run(tmp_path, "inspect none.jsonl --html a.html")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tessera inspect: none.jsonl: No such file or directory\n"
