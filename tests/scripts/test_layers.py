"""`scripts/check_layers.py`: arrows up and circles are named, and this repository has none."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "check_layers.py"


def faults(root: Path, files: dict[str, str]) -> list[str]:
    """Lines of the script about a repository of these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    command = [sys.executable, str(SCRIPT), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines: list[str] = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1 if lines else 0, "")
    return lines


def test_this_repository_has_one_direction() -> None:
    """The rules hold for every file; without an argument the script checks its own repository."""
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_table_has_one_direction() -> None:
    """A layer uses only layers above it in the table, and every pattern of its files finds some."""
    layers = runpy.run_path(str(SCRIPT))["LAYERS"]
    names = list(layers)
    for place, (patterns, uses) in enumerate(layers.values()):
        assert set(uses) <= set(names[:place]), names[place]
        assert all(any(ROOT.glob(pattern)) for pattern in patterns), patterns


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        (
            "src/core/dispatch.cpp",
            '#include "core/dispatch.hpp"\n#include "cpu/backend.hpp"\n',
            "2: uses src/cpu/backend.hpp: src/core may use include, and not src/cpu",
        ),
        (
            "src/core/dispatch.cpp",
            '\n#  include "../cpu/backend.hpp"\n',
            "2: uses src/cpu/backend.hpp: src/core may use include, and not src/cpu",
        ),
        (
            "include/tessera/status.hpp",
            '#include "core/dispatch.hpp"\n',
            "1: uses src/core/dispatch.hpp: include may use no other layer, and not src/core",
        ),
        (
            "contract/checker.hpp",
            "#include <core/dispatch.hpp>\n",
            "1: uses src/core/dispatch.hpp: contract may use include, and not src/core",
        ),
        (
            "src/cuda/parts/fill.cuh",
            '#include "cuda/align_block_size/kernels.hpp"\n',
            "1: uses src/cuda/align_block_size/kernels.hpp: src/cuda/parts may use include, "
            "src/core, and not src/cuda/<op>",
        ),
        (
            "python/tessera/tools/judge/call.py",
            "import tessera.cli.main\n",
            "1: uses python/tessera/cli/main.py: tessera.tools may use tessera._starting, "
            "tessera._library, tessera._frameworks, tessera._call, tessera.<op>, tessera, "
            "and not tessera.cli",
        ),
        (
            "python/tessera/strict.py",
            "def check():\n    from tessera.tools import output_files\n",
            "2: uses python/tessera/tools/output_files.py: tessera.<op> may use tessera._starting, "
            "tessera._library, tessera._frameworks, tessera._call, and not tessera.tools",
        ),
        (
            "python/tessera/_library.py",
            "from . import strict\n",
            "1: uses python/tessera/strict.py: tessera._library may use tessera._starting, and not "
            "tessera.<op>",
        ),
        (
            "python/tessera/vllm/ops.py",
            "import numpy, tessera.sglang\n",
            "1: uses python/tessera/sglang/__init__.py: tessera.vllm may use tessera, "
            "tessera._patching, tessera._starting, tessera._library, and not tessera.sglang",
        ),
    ],
)
def test_an_arrow_up(file: str, text: str, fault: str, tmp_path: Path) -> None:
    """File, line and rule are named, however the other file is spelt."""
    others = (
        *("src/core/dispatch.hpp", "src/cpu/backend.hpp", "src/cuda/align_block_size/kernels.hpp"),
        *("python/tessera/cli/main.py", "python/tessera/tools/output_files.py"),
        *("python/tessera/strict.py", "python/tessera/sglang/__init__.py"),
    )
    files = dict.fromkeys(others, "") | {file: text}
    assert faults(tmp_path, files) == [f"{file}:{fault}"]


def test_what_goes_down_is_no_fault(tmp_path: Path) -> None:
    """System headers and modules of other packages are not uses either."""
    files = {
        "include/tessera/status.hpp": "#include <string>\n",
        "src/cpu/backend.cpp": '#include <cpu/backend.hpp>\n#include "tessera/status.hpp"\n',
        "src/cpu/backend.hpp": '// #include "registry.hpp"\n',
        "src/registry.cpp": '#include "cpu/backend.hpp"\n',
        "python/tessera/__init__.py": "from tessera.strict import check\n",
        "python/tessera/strict.py": "import json\nimport numpy as np\n",
        "python/tessera/tools/bench/cpu.py": "import tessera\nfrom tessera import strict\n",
        "tests/python/test_strict.py": "import oracle\nfrom tessera.tools.bench import cpu\n",
        "tests/python/oracle.py": "",
    }
    assert faults(tmp_path, files) == []


def test_a_circle(tmp_path: Path) -> None:
    """Every import of a circle is named, also one inside a function; what leads to it is not."""
    files = {
        "python/tessera/align.py": "import json\n\ndef f():\n    from tessera.strict import g\n",
        "python/tessera/strict.py": "from tessera.verification import REFERENCE\n",
        "python/tessera/verification.py": "from tessera import align\n",
        "python/tessera/warmup.py": "from tessera import align\n",
    }
    uses = {
        "python/tessera/align.py:4: closes a circle: uses python/tessera/strict.py",
        "python/tessera/strict.py:1: closes a circle: uses python/tessera/verification.py",
        "python/tessera/verification.py:1: closes a circle: uses python/tessera/align.py",
    }
    found = faults(tmp_path, files)
    assert set(found) == uses
    assert len(found) == len(uses)


def test_a_circle_of_headers(tmp_path: Path) -> None:
    """Headers beside each other need no folder in their includes."""
    files = {"contract/a.hpp": '#include "b.hpp"\n', "contract/b.hpp": '\n#include "a.hpp"\n'}
    assert sorted(faults(tmp_path, files)) == [
        "contract/a.hpp:1: closes a circle: uses contract/b.hpp",
        "contract/b.hpp:2: closes a circle: uses contract/a.hpp",
    ]


def test_nothing_escapes(tmp_path: Path) -> None:
    """A folder without a layer, an include that leads nowhere, and a repository without files."""
    assert faults(tmp_path, {}) == [
        f"{tmp_path}: expected files that import or include others, found none"
    ]
    files = {"src/core/a.cpp": '#include "nowhere.hpp"\n', "src/new/b.cpp": ""}
    assert sorted(faults(tmp_path, files)) == [
        "src/core/a.cpp:1: uses src/core/nowhere.hpp, and no folder of includes has it",
        "src/new/b.cpp:1: no layer of scripts/check_layers.py has this file",
    ]
