"""Ctrl-C while the program is starting, at places that a module tells which is imported there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# A package that, like some, aborts where an exception comes out of what it calls.
INTERRUPTED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10):
        pass
except BaseException:
    os.abort()
"""
PROGRAMS = {
    "tessera": [str(Path(sys.executable).with_name("tessera"))],
    "python -m tessera": [sys.executable, "-m", "tessera"],
}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    # The tests may run in the background, where shells have programs ignore SIGINT.
    command = ["env", "--default-signal=INT", *command]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("module", ["numpy", "rich", "torch", "tvm_ffi"])
def test_an_interrupt_of_an_import(program: str, module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(INTERRUPTED)
    if module == "tvm_ffi":  # which comes after torch, that takes seconds
        (tmp_path / "torch.py").write_text("raise ImportError('none')\n")
    done = run([*PROGRAMS[program], "info"], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_termination_while_torch_loads(program: str, tmp_path: Path) -> None:
    """Nothing may take it for a torch that fails to load, and go on."""
    (tmp_path / "torch.py").write_text(INTERRUPTED.replace("SIGINT", "SIGTERM"))
    done = run([*PROGRAMS[program], "info"], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "", "")


def test_loading_is_shown_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('none')\n")
    command = [*PROGRAMS["tessera"], "info", "--json"]
    assert run(command, tmp_path).stderr == ""
    shown = run(["env", "FORCE_COLOR=1", *command], tmp_path)
    assert "loading" in shown.stderr
    assert shown.stdout.startswith("{")


@pytest.mark.parametrize(("name", "exit_code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_of_the_work(name: str, exit_code: int, tmp_path: Path) -> None:
    # An exception, so that a command can tidy up.
    (tmp_path / "torch.py").write_text("raise ImportError('none')\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, zipfile\n"
        "def closed(*args, **options):\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
        "zipfile.ZipFile.writestr = zipfile.ZipFile.open = closed\n"
    )
    output = tmp_path / "new.npz"
    command = [*PROGRAMS["tessera"], "align", "--tokens", "9", "--output", str(output)]
    before = sorted(tmp_path.iterdir())
    done = run(command, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (exit_code, "", "")
    assert [path for path in sorted(tmp_path.iterdir()) if path not in before] in (
        [],
        [tmp_path / "__pycache__"],
    )


def test_other_programs_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('none')\n")
    script = (
        "import os, signal, sys, tessera\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "tessera.version()\n"
        "assert before is signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "assert 'tessera.cli.main' not in sys.modules\n"
    )
    done = run([sys.executable, "-c", script], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
