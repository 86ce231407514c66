"""Runs every code block of the README and of all pages, or says why one cannot be run here.

The blocks of a page share a folder, which holds what their commands name: a routing log, a script,
a package with an implementation.
Python blocks are run with their asserts, each in a fresh namespace, shell blocks command by
command. One that is followed by a block marked `text output` has to print that.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(.*)\n((?s:.*?))^\1```$", re.MULTILINE)
FRAMEWORKS = ("cupy", "jax", "torch", "transformers", "vllm")

# What the pages' commands call the files of the reader.
STAND_INS = {"LOG": "routing.jsonl", "LOG...": "routing.jsonl", "SCRIPT": "script.py"}
SCRIPT = """
import torch
from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size
moe_align_block_size(torch.tensor([[2, 0], [1, 2]]), 4, 4)
"""
# The package `my_kernels`: a function in the package, and one in each of its modules.
IMPLEMENTATION = "from tessera import align_block_size, fused_experts\n\nalign = align_block_size\n"
# Stand-ins for engines that are not installed, with the same functions.
ENGINES = {
    "import tessera.vllm": "vllm-0.33.0",
    "import tessera.sglang": "sglang-0.5.23",
}

# Added to a command to save time, as peers have tests of their own, or so that a verdict is not cut
# short on a busy machine.
ADDED = {
    "tessera bench": " --peers none",
    "tessera verify --impl": " --random 0 --seconds 280",  # less than the test has
}

# Commands that no test can run here, as patterns, and why.
NOT_RUN = {
    r"make book": ".ci/run makes the book",
    r"make .*": "sets up the checkout that this test runs in, and takes minutes",
    r"\.ci/run": "runs this test",
    r"scripts/build\.sh .*": "builds the C++ tests; `make test` does that and runs them",
    r"cmake .*": "tests/install/install_test.cmake builds, installs and uses the library",
    r"\.venv/bin/python bench/fused_experts_policy\.py .*": "needs a GPU",
    r"python bench/engine/.*": "needs vLLM and a GPU; test_bench_engine.py has made-up engines",
    r"\.venv/bin/python bench/.*": "tests/python/test_bench_page.py runs it",
    r"(\w+=\w+ )*pip (install|wheel) .*": "changes this environment; .ci/run installs the package",
    r".*vllm serve .*|.*sglang\.launch_server.*": "needs the engine, a model and a GPU",
    r".*--device cuda.*|.*--method \S*cold.*": "needs a GPU",
    r"curl .*": "needs a running engine",
    r"tessera verify --impl vllm\..*": "needs the engine and a GPU",
    r"tessera bench --op fused_experts .*": "takes minutes; test_bench_fused_experts.py is smaller",
    r"tessera bench --preset grid .*": "takes minutes; tests/cli/test_bench.py has smaller ones",
}
# The same of Python blocks.
NOT_RUN_PYTHON = {r"\bLLM\(": "needs vLLM, a GPU, and a model, which it would fetch"}


class Block(NamedTuple):
    """A fenced block; `line` is the line of its first code, `output` what it must print."""

    page: Path
    line: int
    kind: str
    code: str
    output: str | None

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    return [
        Block(
            page,
            text.count("\n", 0, match.start(3)) + 1,
            match[2],
            match[3],
            following[3] if following is not None and following[2] == "text output" else None,
        )
        for match, following in zip_longest(found, found[1:])
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of_kind(kind: str) -> list[object]:
    return [pytest.param(block, id=block.name) for block in BLOCKS if block.kind == kind]


def commands(block: Block) -> list[str]:
    """The commands of a shell block or a workflow, without comments; one may have several lines."""
    code = block.code.replace("\\\n", " ")
    if block.kind == "yaml":
        return re.findall(r"^ *- run: (.+)$", code, re.MULTILINE)
    lines = (re.sub(r"(^|  +)#.*$", "", line).strip() for line in code.splitlines())
    return [line for line in lines if line]


COMMANDS = [
    (block, line) for block in BLOCKS if block.kind in ("sh", "yaml") for line in commands(block)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """For each page the folder that its blocks are run in."""
    rng = np.random.default_rng(seed=0)
    rows = rng.random((256, 32)).argsort(axis=1)[:, :4].tolist()
    log: list[dict[str, object]] = [{"type": "meta", "model_id": "example", "num_experts": 32}]
    log += [{"type": "route", "layer": i % 2, "topk_ids": row} for i, row in enumerate(rows)]
    made = {}
    for page in PAGES:
        made[page] = tmp_path_factory.mktemp(page.stem)
        (made[page] / "routing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        (made[page] / "script.py").write_text(SCRIPT)
        np.save(
            made[page] / "routed_experts.npy", np.array(rows, np.int16)[:, None, :].repeat(2, 1)
        )
        for name in ("rank0.jsonl", "rank1.jsonl", "before.jsonl", "after.jsonl"):
            (made[page] / name).write_bytes((made[page] / "routing.jsonl").read_bytes())
        (made[page] / "records").mkdir()
        if importlib.util.find_spec("torch") is not None:
            record_as_sglang(made[page] / "records/expert_distribution_recorder_1_0.pt")
        (made[page] / "my_kernels").mkdir()
        for name in ("__init__.py", "align.py", "experts.py"):
            (made[page] / "my_kernels" / name).write_text(IMPLEMENTATION)
    return made


def record_as_sglang(file: Path) -> None:
    """Write what SGLang's recorder writes: two forward passes over three layers."""
    import torch

    passes = [{"topk_ids_of_layer": torch.arange(6 * n).view(3, n, 2) % 64} for n in (4, 1)]
    torch.save({"records": passes}, file)


@pytest.mark.parametrize("block", of_kind("python"))
def test_python_block(
    block: Block, folders: dict[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block runs through; blank lines before the code make tracebacks point into the page."""
    for line, stand_in in ENGINES.items():
        if line in block.code:
            run_beside_engine(block, stand_in)
            return
    for form, why in NOT_RUN_PYTHON.items():
        if re.search(form, block.code):
            pytest.skip(f"{block.name}: {why}")
    monkeypatch.chdir(folders[block.page])
    try:
        if 'device="cuda"' in block.code:
            import torch

            if not torch.cuda.is_available():
                pytest.skip("torch finds no GPU")
        code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")
        exec(code, {"__name__": "__main__"})
    except ModuleNotFoundError as error:
        if error.name not in FRAMEWORKS:
            raise
        pytest.skip(f"{error.name} is not installed")


def run_beside_engine(block: Block, stand_in: str) -> None:
    """Run a block in a process that finds the stand-in for an engine."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    adapters = ROOT / "tests/adapters"
    folders = [adapters / "standins" / stand_in, adapters, ROOT / "tests/python"]
    path = [*map(str, folders), os.environ.get("PYTHONPATH", "")]
    finished = subprocess.run(
        [sys.executable, "-c", block.code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, f"{block.name}: {finished.stderr}"


def once() -> list[object]:
    """One pytest parameter for each command; what several pages tell to run is run once."""
    seen, parameters = set(), []
    for block, command in COMMANDS:
        if command not in seen or block.output is not None:
            parameters.append(pytest.param(block, command, id=f"{block.name} {command}"))
        seen.add(command)
    return parameters


@pytest.mark.parametrize(("block", "command"), once())
def test_command(block: Block, command: str, folders: dict[Path, Path]) -> None:
    """A command ends well, and prints what the page shows."""
    for form, why in NOT_RUN.items():
        if re.fullmatch(form, command):
            pytest.skip(f"{command}: {why}")
    if "SCRIPT" in command and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    line = " ".join(STAND_INS.get(word, word) for word in command.split(" "))
    line += "".join(more for begin, more in ADDED.items() if line.startswith(begin))
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        cwd=folders[block.page],
        env=os.environ | {"PATH": os.pathsep.join(path), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, f"{line}\n{finished.stdout}{finished.stderr}"
    if block.output is not None:
        assert matches(block.output, finished.stdout), finished.stdout


def matches(shown: str, printed: str) -> bool:
    """Whether a command printed what the page shows; a line `...` stands for any lines."""
    form = ".*".join(map(re.escape, shown.split("...\n")))
    return bool(re.fullmatch(form, re.sub(r" +$", "", printed, flags=re.MULTILINE), re.DOTALL))


def test_every_block_is_accounted_for() -> None:
    """A block is run, included from a file that a test compiles, or no code at all."""
    included = {
        str((block.page.parent / block.kind.partition("} ")[2]).resolve().relative_to(ROOT))
        for block in BLOCKS
        if block.kind.startswith("{literalinclude} ")
    }
    built = {f"examples/{name}" for name in ("c/align.c", "cpp/align.cpp", "worked_example.txt")}
    built |= {
        f"examples/c/{op}.{end}" for op in ("moe_sum", "fused_experts") for end in ("c", "txt")
    }
    built |= {f"examples/{language}/CMakeLists.txt" for language in ("c", "cpp")}
    assert included <= built
    others = {
        f"{block.name}: {block.kind}"
        for block in BLOCKS
        if block.kind not in ("python", "sh", "yaml", "text", "text output")
        and not block.kind.startswith("{literalinclude} ")
    }
    assert not others
    assert {"README.md", "getting-started.md", "align_block_size.md"} <= {
        block.page.name for block in BLOCKS if block.kind == "python"
    }


def test_output_is_that_of_a_command() -> None:
    """A block marked as output follows the command that prints it."""
    marked = sum(block.kind == "text output" for block in BLOCKS)
    printing = [block for block in BLOCKS if block.kind == "sh" and block.output is not None]
    assert marked == len(printing)
    assert all(len(commands(block)) == 1 for block in printing)
    assert marked


@pytest.mark.parametrize("form", NOT_RUN)
def test_list_of_what_is_not_run_is_exact(form: str) -> None:
    """An entry without a command on any page goes."""
    assert any(re.fullmatch(form, command) for _, command in COMMANDS)


@pytest.mark.parametrize("form", NOT_RUN_PYTHON)
def test_list_of_blocks_that_are_not_run_is_exact(form: str) -> None:
    assert any(re.search(form, block.code) for block in BLOCKS if block.kind == "python")
