"""What `scripts/setup.sh package` prints before it builds, and what it refuses to build."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
H200 = "echo NVIDIA H200, 9.0"
T4 = "echo Tesla T4, 7.5"
NONE = "exit 9"
NO_GPU = (
    "no NVIDIA GPU of compute capability 8.0 or newer here (CUDAARCHS=all builds for every GPU)"
)
CANNOT = "TESSERA_CUDA=ON: the CUDA backend cannot be built: there is "
NO_NVCC = "no nvcc here: to use a GPU install the CUDA toolkit 12.8 or newer"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script, the files that it looks at, empty, and programs that do nothing."""
    for name in ("bench", "cmake", "contract", "include", "python", "src"):
        (tmp_path / name).mkdir()
    for name in ("CMakeLists.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    (tmp_path / "VERSION").write_text("1.2.3\n", encoding="utf-8")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", tmp_path / "scripts")
    program(tmp_path / ".venv/bin/python", "exit 0")
    program(tmp_path / "programs/c++", "exit 0")
    return tmp_path


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def setup(
    checkout: Path, gpus: str, nvcc: bool, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A run on a machine with these GPUs, and with nvcc or without it."""
    program(checkout / "programs/nvidia-smi", gpus)
    if nvcc:
        program(checkout / "programs/nvcc", "exit 0")
    return subprocess.run(
        [checkout / "scripts/setup.sh", "package"],
        env={"PATH": f"{checkout / 'programs'}:/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("gpus", "nvcc", "variables", "what"),
    [
        (H200, True, {}, "for the CPU and the CUDA architectures 'native'"),
        (H200, True, {"TESSERA_CUDA": "ON"}, "for the CPU and the CUDA architectures 'native'"),
        (NONE, True, {"CUDAARCHS": "90"}, "for the CPU and the CUDA architectures '90'"),
        (H200, True, {"TESSERA_CUDA": "OFF"}, "for the CPU, as TESSERA_CUDA=OFF says"),
        (NONE, True, {"TESSERA_CUDA": "AUTO"}, f"for the CPU, as there is {NO_GPU}"),
        (T4, True, {}, f"for the CPU, as there is {NO_GPU}"),
        (H200, False, {}, f"for the CPU, as there is {NO_NVCC}"),
    ],
)
def test_what_is_built(
    checkout: Path, gpus: str, nvcc: bool, variables: dict[str, str], what: str
) -> None:
    """For which processors, and why not for more."""
    done = setup(checkout, gpus, nvcc, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"setup: building Python package tessera 1.2.3 {what}" in done.stdout


@pytest.mark.parametrize(
    ("gpus", "nvcc", "choice", "message"),
    [
        (NONE, True, "ON", f"{CANNOT}{NO_GPU}"),
        (T4, True, "ON", f"{CANNOT}{NO_GPU}"),
        (
            H200,
            False,
            "ON",
            f"{CANNOT}{NO_NVCC}",
        ),
        (H200, True, "on", "TESSERA_CUDA: expected ON, OFF or AUTO, got 'on'"),
        (NONE, False, "OF", "TESSERA_CUDA: expected ON, OFF or AUTO, got 'OF'"),
    ],
)
def test_what_cannot_be_built(
    checkout: Path, gpus: str, nvcc: bool, choice: str, message: str
) -> None:
    """The error comes before a build, which would take minutes and fail with the same error."""
    done = setup(checkout, gpus, nvcc, TESSERA_CUDA=choice)
    assert done.returncode == 1
    assert done.stderr.startswith(f"setup: error: {message}")
    assert "building" not in done.stdout
