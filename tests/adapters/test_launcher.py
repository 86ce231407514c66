"""`python -m tessera.vllm`, run as a user runs it: on scripts, modules and test files."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from launching import LAUNCHER, launch, output
from programs import run_program

HERE = Path(__file__).parent
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
no_vllm = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")

IMPORTS = {
    "the_package_first": """
from vllm.model_executor.layers.fused_moe import moe_align_block_size as either
from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size
""",
    "the_module_first": """
import vllm.model_executor.layers.fused_moe.moe_align_block_size as module
from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size
from vllm.model_executor.layers.fused_moe import moe_align_block_size as either
assert module is either
""",
    "by_attribute": """
import vllm.model_executor.layers.fused_moe as fused_moe
either = fused_moe.moe_align_block_size
moe_align_block_size = fused_moe.moe_align_block_size.moe_align_block_size
""",
}
CALLS = """
import torch
ids = torch.arange(6, dtype=torch.int32) % 3
expected = [[0, 3, 6, 6, 1, 4, 6, 6, 2, 5, 6, 6, 6, 6, 6], [0, 1, 2, 0], [12]]
for align in (either, moe_align_block_size):
    for outputs in (align(ids, 3, 4, 2), align(ids, 4, 3), align(ids, 4, 3, None)):
        assert [each.tolist() for each in outputs] == expected, outputs

from vllm import _custom_ops as ops
out = tuple(torch.empty(length, dtype=torch.int32) for length in (15, 4, 1))
assert ops.moe_align_block_size(ids, 3, 4, *out) is None
assert [each.tolist() for each in out] == expected, out
print("served")
"""


@needs_torch
@no_vllm
@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_every_way_to_import_the_function(tmp_path: Path, imports: str) -> None:
    assert output(tmp_path, imports + CALLS, "--device", "cpu") == "served\n"


@needs_torch
@no_vllm
def test_the_stand_in_says_what_it_has_not(tmp_path: Path) -> None:
    script = """
import importlib.util
import vllm
asked = [
    "import vllm.entrypoints.llm",
    "from vllm import LLM",
    "from vllm._custom_ops import rms_norm",
    "from vllm.utils import random_uuid",
    "from vllm.model_executor.layers.fused_moe.moe_align_block_size import nothing",
    "vllm.__version__",
    "vllm.platforms.current_plan",
]
for each in asked:
    try:
        exec(each)
    except (ImportError, AttributeError) as error:
        print(type(error).__name__, error)
assert not hasattr(vllm, "LLM") and importlib.util.find_spec("vllm") is vllm.__spec__
print(vllm)
"""
    *lines, module = output(tmp_path, script, "--device", "cpu").splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "ModuleNotFoundError vllm.entrypoints",
        "ModuleNotFoundError vllm.LLM",
        "ModuleNotFoundError vllm._custom_ops.rms_norm",
        "ModuleNotFoundError vllm.utils.random_uuid",
        "ModuleNotFoundError vllm.model_executor.layers.fused_moe.moe_align_block_size.nothing",
        "AttributeError vllm.__version__",
        "AttributeError vllm.platforms.current_plan",
    ]
    for line in lines:
        assert line.partition(": ")[2] == (
            "not in Tessera's stand-in for vLLM, which is not installed (pip install vllm); "
            "docs/vllm-script.md lists what the stand-in has"
        )
    assert module == "<module 'vllm' (Tessera's stand-in)>"


TEST_FILE = """
import numpy as np
import pytest
import torch
from vllm.model_executor.layers.fused_moe.moe_align_block_size import (
    batched_moe_align_block_size, moe_align_block_size)
from vllm.platforms import current_platform
from vllm.utils import round_up

current_platform.seed_everything(0)
first = torch.rand(1), np.random.rand()
current_platform.seed_everything()
current_platform.seed_everything(seed=0)
assert (torch.rand(1), np.random.rand()) == first

@pytest.mark.parametrize("pad_sorted_ids", [False, True])
@pytest.mark.skipif(current_platform.is_rocm(), reason="ROCm")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_lengths(pad_sorted_ids):
    topk_ids = torch.zeros((5, 2), device="cuda", dtype=torch.int32)
    topk_ids[1] = torch.randperm(8, device="cuda")[:2]
    outputs = moe_align_block_size(topk_ids=topk_ids, block_size=4, num_experts=8,
                                   pad_sorted_ids=pad_sorted_ids)
    assert len(outputs[0]) == (round_up(34, 4) if pad_sorted_ids else 34)
    expected = torch.tensor([0], dtype=torch.int32).to("cuda")
    torch.testing.assert_close(outputs[1][:1], expected, atol=0, rtol=0)

def test_batched():
    counts = torch.tensor([3, 0], dtype=torch.int32).cuda()
    sorted_ids, expert_ids, total = batched_moe_align_block_size(5, 4, counts)
    assert sorted_ids.tolist() == [0, 1, 2, 10] + [10] * 8
    assert expert_ids.tolist() == [0, -1, -1]
    assert total.item() == 4
"""


@needs_torch
@no_vllm
def test_a_test_file_runs_through_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_op.py").write_text(TEST_FILE)
    done = launch(tmp_path, "--device", "cpu", "-m", "pytest", "-q", "--", "test_op.py")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "3 passed" in done.stdout
    done = launch(tmp_path, "--device", "cpu", "-m", "pytest", "-q", "missing.py")
    assert done.returncode == 4  # pytest's own


PROGRAM = """
import json, sys, torch
import neighbour
generator = torch.Generator().manual_seed(torch.initial_seed())
print(json.dumps({
    "argv": sys.argv,
    "path": sys.path[0],
    "name": __name__,
    "file": __file__,
    "main": sys.modules["__main__"].__dict__ is globals(),
    "no random number was drawn": torch.equal(
        torch.get_rng_state(), generator.get_state()),
    "neighbour": neighbour.__name__,
}))
raise SystemExit(7)
"""


@needs_torch
@no_vllm
@pytest.mark.parametrize("how", ["script", "module"])
def test_a_program_finds_what_python_gives_it(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM)
    (folder / "neighbour.py").touch()
    if how == "script":
        cwd, program, file = tmp_path, ["folder/program.py"], "folder/program.py"
    else:
        cwd, program, file = folder, ["-m", "program"], str(folder / "program.py")
    own = ["-m", "--device", "--", "cuda", "--help"]
    done = launch(cwd, "--device", "cpu", *program, *own)
    assert (done.returncode, done.stderr) == (7, "")
    assert json.loads(done.stdout) == {
        "argv": [file, *own],
        "path": str(folder),
        "name": "__main__",
        "file": file,
        "main": True,
        "no random number was drawn": True,
        "neighbour": "neighbour",
    }


FAILING = """
import sys
def fail():
    print(sys.argv, repr(sys.path[0]), __name__, "__file__" in globals())
    raise KeyError("wrong")
fail()
"""


@needs_torch
@no_vllm
@pytest.mark.parametrize("how", ["script.py", "-", "module"])
def test_a_traceback_begins_in_the_program(tmp_path: Path, how: str) -> None:
    file = tmp_path / ("script.py" if how != "module" else "module.py")
    file.write_text(FAILING)
    program = ["-m", "module"] if how == "module" else [how]
    done = launch(tmp_path, "--device", "cpu", *program, "-x", stdin=FAILING)
    shown = {"script.py": "script.py", "-": "<stdin>", "module": str(file)}[how]
    first, frame, *rest, last = done.stderr.splitlines()
    assert (done.returncode, first) == (1, "Traceback (most recent call last):")
    assert frame == f'  File "{shown}", line 6, in <module>'
    assert sum(line.startswith("  File ") for line in rest) == 1 and last == "KeyError: 'wrong'"
    told = "['-', '-x'] '' __main__ False" if how == "-" else "__main__ True"
    assert told in done.stdout


@needs_torch
@no_vllm
def test_a_syntax_error_has_no_traceback(tmp_path: Path) -> None:
    done = launch(tmp_path, "--device", "cpu", "-", stdin="def (\n")
    assert done.returncode == 1
    assert done.stderr.startswith('  File "<stdin>", line 1\n')


@needs_torch
@no_vllm
def test_without_a_gpu_the_launcher_names_the_way_out(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    use = "import torch\ndef use(x):\n    return torch.nn.Linear(1, 1).to(x)\n"
    (tmp_path / "script.py").write_text(f"{use}use('cuda')\n")
    done = launch(tmp_path, "script.py")
    assert (done.returncode, done.stdout) == (1, "")
    first, last = done.stderr.splitlines()
    assert first == (
        "tessera.vllm: no GPU found; --device cpu runs programs written for a GPU on the CPU"
    )
    assert last.startswith("tessera.vllm: script.py:3: expected a GPU, found none: ")
    assert "CUDA" in last or "NVIDIA" in last
    # Any other error has its traceback.
    (tmp_path / "script.py").write_text(f"{use}use('no device')\n")
    done = launch(tmp_path, "script.py")
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:3] == [
        "Traceback (most recent call last):",
        '  File "script.py", line 4, in <module>',
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SCRIPT: expected a file, or -m MODULE, got nothing; see --help"),
        (["missing.py", "--help"], "SCRIPT: expected a file, got 'missing.py'"),
        (["."], "SCRIPT: expected a file, got '.'"),
        (["-m"], "-m: expected the name of a module, got nothing"),
        (["-m", "missing"], "-m: expected the name of a module, got 'missing'"),
        (
            ["-m", "missing.part"],
            "-m: expected the name of a module, got 'missing.part' (No module named 'missing')",
        ),
        (
            ["-m", "package"],
            "-m: expected the name of a module, got 'package'",
        ),
        (["--device"], "argument --device: expected one argument"),
        (["--dev", "cpu", "script.py"], "unrecognized arguments: --dev"),
        (
            ["--device", "cpu", "script.py"],
            "vLLM's functions take torch's tensors, and torch cannot be imported "
            "(ImportError: hidden from this process)",
        ),
    ],
)
def test_what_cannot_be_started_is_told_in_one_line(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "script.py").touch()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    done = run_program([*LAUNCHER, *arguments], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tessera.vllm: {message}\n"


def test_help() -> None:
    done = run_program([*LAUNCHER, "--help"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "usage: python -m tessera.vllm [--device DEVICE] (SCRIPT | - | -m MODULE) [ARGUMENT ...]\n"
    )


@needs_torch
@pytest.mark.parametrize("device", ["tpu", "7"])
def test_a_device_that_is_none_is_refused(tmp_path: Path, device: str) -> None:
    (tmp_path / "script.py").touch()
    done = launch(tmp_path, "--device", device, "script.py")
    assert (done.returncode, done.stdout) == (2, "")
    expected = f"expected cpu, cuda or cuda:N, got {device!r}"
    assert done.stderr == f"tessera.vllm: argument --device: {expected}\n"


@needs_torch
@no_vllm
def test_the_cpu_may_have_its_index(tmp_path: Path) -> None:
    script = "import torch; print(torch.ones(2, device='cuda').device)"
    assert output(tmp_path, script, "--device", "cpu:0") == "cpu\n"


@needs_torch
@no_vllm
def test_a_gpu_that_is_not_there_is_blamed_on_the_argument(tmp_path: Path) -> None:
    (tmp_path / "script.py").touch()
    done = launch(tmp_path, "--device", "cuda:99", "script.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tessera.vllm: argument --device: expected ")
    assert "cuda:99" in done.stderr and len(done.stderr.splitlines()) == 1


@needs_torch
@pytest.mark.parametrize("version", ["0.9.2", "0.12.0", "0.33.0"])
def test_an_installed_vllm_is_served(tmp_path: Path, version: str) -> None:
    script = """
import torch
import engine_ops
from vllm import __version__ as version
import vllm.model_executor.layers.fused_moe.moe_align_block_size as module
from vllm.model_executor.layers.fused_moe import moe_align_block_size
from vllm.model_executor.layers.fused_moe.moe_align_block_size import (
    moe_align_block_size as function)

assert module is moe_align_block_size
ids = torch.arange(6, dtype=torch.int32) % 3
for align in (moe_align_block_size, function):
    for outputs in (align(ids, 3, 4, 2), align(ids, 4, 3), align(ids, 4, 3, None)):
        assert outputs[0].tolist() == [0, 3, 6, 6, 1, 4, 6, 6, 2, 5, 6, 6, 6, 6, 6], outputs
        assert outputs[1][:3].tolist() == [0, 1, 2]
try:
    function(ids, 3, 4, True)
except TypeError as error:
    print(error)
print(engine_ops.calls, version)
"""
    path = (HERE / "standins" / f"vllm-{version}", HERE, HERE.parent / "python")
    error, calls = output(tmp_path, script, "--device", "cpu", path=path).splitlines()
    assert error.startswith("moe_align_block_size: arguments: expected (topk_ids, block_size, ")
    assert calls == f"[] {version}"


@needs_torch
def test_a_broken_vllm_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").write_text("raise OSError('no library\\nof that name')\n")
    (tmp_path / "script.py").touch()
    done = launch(tmp_path, "script.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "tessera.vllm: vllm: expected a package that can be imported, got OSError: no library\n"
    )


@needs_torch
@no_vllm
def test_a_folder_that_is_called_vllm_is_not_vllm(tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()
    assert output(tmp_path, "import vllm; print(vllm)", "--device", "cpu") == (
        "<module 'vllm' (Tessera's stand-in)>\n"
    )
