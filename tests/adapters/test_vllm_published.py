"""vLLM's own test of its layer over Tessera, where TESSERA_VLLM_TEST_FILE says it is.

`published/run.py` fetches it, and runs all of it; here a part runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

RUN = Path(__file__).parent / "published/run.py"
# With and without padding and a map; 511 hidden numbers; CUDA graphs, on a GPU, where both sizes
# are 1024 or more; several chunks of vLLM's.
ON_CPU = "opcheck or moe_sum or (test_fused_moe and -8- and (511-128-33] or 128-1024-222]))"
ON_GPU = "opcheck or moe_sum or (test_fused_moe and (511-1024-33] or 1024-1024-40000]))"

pytestmark = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")


def test_published_tests_pass() -> None:
    file = os.environ.get("TESSERA_VLLM_TEST_FILE")
    if not file:
        pytest.skip("TESSERA_VLLM_TEST_FILE does not name vLLM's tests/kernels/moe/test_moe.py")
    where = ["-k", ON_GPU] if torch.cuda.is_available() else ["--device", "cpu", "-k", ON_CPU]
    done = subprocess.run(
        [sys.executable, str(RUN), "--file", file, *where], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{2,} passed, \d+ deselected", done.stdout)


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "test_moe.py"
    other.write_text("def test_nothing(): pass\n")
    command = [sys.executable, str(RUN), "--file", str(other)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"run.py: error: {other}: expected SHA-256 8f1de5b9" in done.stderr
