"""vLLM's own tests of its layers over Tessera, which lie in the folder TESSERA_VLLM_TESTS.

`published/run.py` fetches them, and runs all of each; here a part runs.
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
# Of each file, with what it is compared to: the parts on the CPU and on a GPU.
PARTS = {
    # With and without padding and a map; 511 hidden numbers; CUDA graphs, on a GPU, where both
    # sizes are 1024 or more; several chunks of vLLM's.
    ("test_moe.py", "vllm"): (
        "opcheck or moe_sum or (test_fused_moe and -8- and (511-128-33] or 128-1024-222]))",
        "opcheck or moe_sum or (test_fused_moe and (511-1024-33] or 1024-1024-40000]))",
    ),
    # Most outputs of 7168 hidden numbers are above the tolerance, most of 512 below it. Some
    # other cases fail unless the reference is in float32: docs/vllm-script.md says why.
    ("test_block_fp8.py", "vllm"): (
        "(0-1-2-83- or 0-2-2-83- or 0-6-8-83-) and not 4608-7168]",
        "1-512-512] or 83-1024-7168] or 8192-4608-512]",
    ),
    ("test_block_fp8.py", "float32"): (
        "0-2-2-83-4608-7168] or 1-512-512] or 83-512-512]",
        "-7168]",
    ),
    ("test_triton_moe_ptpc_fp8.py", "vllm"): ("33-128- or 33-1024-256-", "fp8"),
}
# A plug-in of pytest: vLLM's tests of fp8 skip themselves on what is below 9.0.
CAPABLE = """
from vllm.platforms import current_platform
current_platform.get_device_capability = lambda: (9, 0)
"""

pytestmark = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")


@pytest.mark.parametrize(("name", "reference"), PARTS)
def test_published_tests_pass(
    name: str, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = os.environ.get("TESSERA_VLLM_TESTS")
    file = Path(folder or "", name)
    if not folder or not file.is_file():
        pytest.skip(f"TESSERA_VLLM_TESTS names no folder with vLLM's tests/kernels/moe/{name}")
    on_cpu, on_gpu = PARTS[name, reference]
    if torch.cuda.is_available():
        if "fp8" in name and torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("fp8 needs a GPU of compute capability 9.0")
        where = ["-k", on_gpu]
    else:
        (tmp_path / "capable.py").write_text(CAPABLE)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        where = ["--device", "cpu", "-p", "capable", "-k", on_cpu]
    command = [sys.executable, str(RUN), "--file", str(file), "--reference", reference, *where]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d{2,} passed", done.stdout, re.MULTILINE)


def test_a_python_with_vllm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    command = [sys.executable, str(RUN), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "run.py: error: expected a Python without vLLM, got one that has it: " in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--device", "cpu", "--reference", "float32"],
            "--reference float32 is for the tests of fp8, not for test_moe.py",
        ),
        (["--test", "test_block_fp8.py"], "expected a CUDA device, found none (--device cpu runs "),
    ],
)
def test_what_cannot_run_is_not_fetched(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nothing is: no file comes
    done = subprocess.run([sys.executable, str(RUN), *options], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"run.py: error: {message}" in done.stderr


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "test_moe.py"
    other.write_text("def test_nothing(): pass\n")
    command = [sys.executable, str(RUN), "--file", str(other)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"run.py: error: {other}: expected SHA-256 8f1de5b9" in done.stderr
    assert all(f" ({name})" in done.stderr for name, _ in PARTS)
