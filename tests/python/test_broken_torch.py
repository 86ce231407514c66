"""A torch that is installed and fails when it is imported takes nothing with it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from programs import run_program

FAILURES = {
    "OSError": ("raise OSError('libtorch.so: cannot open shared object file')", "libtorch.so"),
    "ImportError": ("raise ImportError('undefined symbol: x')", "undefined symbol: x"),
    "ModuleNotFoundError": ("import nothing_of_this_name", "nothing_of_this_name"),
    "RuntimeError": (
        "raise RuntimeError('operator exists already\\nat line 5')",
        "operator exists",
    ),
    "AttributeError": ("import numpy; numpy.no_such_thing", "no_such_thing"),
    "SystemExit": ("import sys; sys.exit('no GPU here')", "no GPU here"),
    "BaseException": ("raise BaseException('of no kind')", "of no kind"),
    # As libtorch's own module fails: after parts of the package were imported.
    "ValueError": ("from torch import part; part.nothing(); raise ValueError('late')", "late"),
}

CALLS = """
import sys
import tessera
assert "torch" not in sys.modules
import numpy as np

ids = np.array([[2, 0], [1, 2]], np.int32)
blocks = tessera.align_block_size(ids, block_size=2, num_experts=3)
assert tessera.contract_violations(ids, blocks, block_size=2, num_experts=3) == []
tessera.batched_align_block_size(ids[0], max_tokens_per_batch=3, block_size=2)
tessera.lora_align_block_size(ids, ids[0], block_size=2, num_experts=3, max_loras=3)
tessera.align_block_size(ids, block_size=2, num_experts=3, validate="now")
tessera.warmup("cpu")
print(blocks.sorted_token_ids.tolist())
try:
    import torch
except BaseException as error:
    print(f"{type(error).__name__}: {error}")
"""


def run_beside(folder: Path, code: str, *program: str) -> CompletedProcess[str]:
    """Runs Python where `import torch` runs this code."""
    (folder / "torch").mkdir()
    (folder / "torch/__init__.py").write_text(code + "\n")
    (folder / "torch/part.py").write_text("def nothing(): pass\n")
    return run_program([sys.executable, *program], PYTHONPATH=str(folder))


@pytest.mark.parametrize("kind", FAILURES)
def test_numpy_calls_work_and_the_reason_stays(kind: str, tmp_path: Path) -> None:
    code, word = FAILURES[kind]
    done = run_beside(tmp_path, code, "-c", CALLS)
    assert done.stderr == ""
    blocks, failure = done.stdout.splitlines()[:2]
    assert blocks == "[1, 4, 2, 4, 0, 3, 4]"
    assert failure.startswith(f"{kind}: ")
    assert word in failure


@pytest.mark.parametrize("kind", FAILURES)
def test_info_says_why(kind: str, tmp_path: Path) -> None:
    code, word = FAILURES[kind]
    done = run_beside(tmp_path, code, "-m", "tessera", "info")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^torch +unavailable: .*{word}", done.stdout, re.MULTILINE | re.DOTALL)


COMMANDS = {
    "info --json": "info --json",
    "align": "align --tokens 64 --time",
    "verify": "verify --cases random:1:50",
    "verify --impl": "verify --impl tessera:align_block_size --arrays numpy --random 0",
    "bench": "bench --tokens 16 --experts 8 --peers none",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_work(command: str, tmp_path: Path) -> None:
    code, _ = FAILURES["OSError"]
    done = run_beside(tmp_path, code, "-m", "tessera", *COMMANDS[command].split())
    assert (done.returncode, done.stderr) == (0, "")
    if command == "info --json":
        assert json.loads(done.stdout)["torch_failure"] == (
            "OSError: libtorch.so: cannot open shared object file"
        )


BESIDE = """
import sys, threading, time
import numpy as np
import tessera

ids = np.array([[2, 0], [1, 2]], np.int32)
together = threading.Barrier(4)
outcomes = []


def call():
    together.wait()
    try:
        tessera.align_block_size(ids, block_size=2, num_experts=3)
        outcomes.append("served")
    except BaseException as error:
        outcomes.append(repr(error))


class Slow:  # gives the other threads time at every import of the FFI's
    def find_spec(self, name, path=None, target=None):
        if name.startswith("tvm_ffi"):
            time.sleep(0.01)


sys.meta_path.insert(0, Slow())
threads = [threading.Thread(target=call) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(outcomes)
print("torch" in sys.modules)
from tessera._library import torch_failure
print(torch_failure())
"""


def test_several_threads_load_at_once(tmp_path: Path) -> None:
    code = "import time; time.sleep(0.05); raise OSError('libtorch.so: cannot open')"
    done = run_beside(tmp_path, code, "-c", BESIDE)
    assert done.stderr == ""
    outcomes, left, failure = done.stdout.splitlines()
    assert outcomes == str(["served"] * 4)
    assert left == "False"
    assert failure == "OSError: libtorch.so: cannot open"


def test_what_the_program_puts_there_stays(tmp_path: Path) -> None:
    """As where another thread imports torch in the meantime."""
    (tmp_path / "tvm_ffi.py").write_text("import sys; sys.modules['torch'] = sys\n")
    code = (
        "import sys, tessera._library as it; it._import_ffi(); print(sys.modules['torch'] is sys)"
    )
    done = run_beside(tmp_path, FAILURES["OSError"][0], "-c", code)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_stub_stays_and_is_not_used(tmp_path: Path) -> None:
    code = f"import torch\n{CALLS.replace('not in', 'in')}\nprint(sys.modules['torch'] is torch)"
    done = run_beside(tmp_path, "", "-c", code)
    assert (done.stdout, done.stderr) == ("[1, 4, 2, 4, 0, 3, 4]\nTrue\n", "")


def test_an_interrupt_is_none_of_its_failures(tmp_path: Path) -> None:
    code = "raise KeyboardInterrupt"
    done = run_beside(tmp_path, code, "-c", "import tessera; tessera.warmup('cpu')")
    assert done.stderr.endswith("KeyboardInterrupt\n")


def test_tensors_asked_for(tmp_path: Path) -> None:
    command = "verify --impl tessera:align_block_size --arrays torch"
    code, word = FAILURES["OSError"]
    done = run_beside(tmp_path, code, "-m", "tessera", *command.split())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert word in line
    assert line.endswith("give it NumPy's arrays with --arrays numpy")
    assert "pip install" not in line  # it is installed


NOT_INSTALLED = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
IMPLEMENTATION = """
from tessera import align_block_size

def align(topk_ids, block_size, num_experts):
    return align_block_size(topk_ids, block_size=block_size, num_experts=num_experts)
"""


def test_without_torch_what_needs_it_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(IMPLEMENTATION)
    command = [sys.executable, "-m", "tessera", "verify", "--impl", "kernels:align"]
    done = run_beside(tmp_path, NOT_INSTALLED, *command[1:])
    assert done.stderr == (
        "tessera verify: --arrays: the form vllm is given torch's tensors, and torch is not "
        "installed: pip install torch, or give it NumPy's arrays with --arrays numpy\n"
    )
    more = ["--arrays", "numpy", "--cases", "1x8x2/16"]
    done = run_program([*command, *more], PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (NOT_INSTALLED, "is not installed: pip install torch"),
        (FAILURES["ImportError"][0], "cannot be imported (ImportError: undefined symbol: x)"),
    ],
)
def test_a_program_for_vllm(tmp_path: Path, code: str, why: str) -> None:
    (tmp_path / "program.py").write_text("print('run')\n")
    done = run_beside(tmp_path, code, "-m", "tessera.vllm", str(tmp_path / "program.py"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tessera.vllm: vLLM's functions take torch's tensors, and torch {why}\n"


def test_info_of_a_torch_that_is_not_there(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from tessera.cli import main; main.main(['info'])"
    )
    done = run_program([sys.executable, "-c", code])
    assert (done.returncode, done.stderr) == (0, "")
    assert "torch" not in done.stdout
