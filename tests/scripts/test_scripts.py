"""The scripts whose verdict is trusted: the sum over all tests, and the checks of `make lint`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.cli.main import _parser
from tessera.tools.bench.ops.fused_experts_cuda import MODELS

SCRIPTS = Path(__file__).parents[2] / "scripts"

CTEST_REPORT = """<testsuite>
<testcase name="A.Passes" classname="A.Passes" status="run"/>
<testcase name="A.Skips" classname="A.Skips" status="notrun">
<skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/>
<system-out>[ RUN      ] A.Skips
/src/a.cpp:12: Skipped
no routing logs here

[  SKIPPED ] A.Skips (0 ms)
</system-out></testcase>
<testcase name="A.Off" classname="A.Off" status="disabled"><skipped message="Disabled"/></testcase>
</testsuite>"""
PYTEST_REPORT = """<testsuites><testsuite>
<testcase classname="test_b" name="test_passes"/>
<testcase classname="test_b" name="test_fails"><failure message="1 != 2"/></testcase>
<testcase classname="test_b" name="test_breaks"><error message="no fixture"/></testcase>
<testcase classname="test_b" name="test_skips[1]"><skipped message="torch is absent"/></testcase>
<testcase classname="test_b" name="test_skips[2]"><skipped message="torch is absent"/></testcase>
</testsuite></testsuites>"""


def run(script: str, *arguments: object) -> tuple[int, list[str]]:
    """Exit status and lines of a script."""
    command = [sys.executable, SCRIPTS / script, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return finished.returncode, finished.stdout.split("\n")[:-1]


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Folder with one report of each runner."""
    (tmp_path / "ctest.xml").write_text(CTEST_REPORT, encoding="utf-8")
    (tmp_path / "pytest.xml").write_text(PYTEST_REPORT, encoding="utf-8")
    return tmp_path


def test_summary_adds_runners_up(reports: Path) -> None:
    """Passes, failures, errors and skips of both runners are counted, with names and reasons."""
    ctest, python = reports / "ctest.xml", reports / "pytest.xml"
    status, lines = run("test_summary.py", "ctest", ctest, 0, "pytest", python, 1)
    assert status == 1
    assert lines == [
        "",
        "skipped  ctest: A.Skips: no routing logs here",
        "skipped  ctest: A.Off: Disabled",
        "skipped  pytest: test_b::test_skips: torch is absent (2 tests)",
        "FAILED   pytest: test_b::test_fails",
        "FAILED   pytest: test_b::test_breaks",
        "2 passed, 2 failed, 4 skipped",
    ]


def test_summary_of_good_runs(reports: Path) -> None:
    """Skips alone are no failure."""
    status, lines = run("test_summary.py", "ctest", reports / "ctest.xml", 0)
    assert (status, lines[-1]) == (0, "1 passed, 0 failed, 2 skipped")


@pytest.mark.parametrize("report", ["ctest.xml", "absent.xml"])
def test_summary_counts_a_crash(reports: Path, report: str) -> None:
    """A runner that dies fails, whether or not it left a report."""
    status, lines = run("test_summary.py", "ctest", reports / report, 139)
    assert status == 1
    assert " 1 failed, " in lines[-1]


def test_summary_of_nothing_fails(tmp_path: Path) -> None:
    """A run without a test proves nothing."""
    (tmp_path / "empty.xml").write_text("<testsuite/>", encoding="utf-8")
    status, lines = run("test_summary.py", "ctest", tmp_path / "empty.xml", 0)
    assert (status, lines[-1]) == (1, "0 passed, 0 failed, 0 skipped")


def test_file_length(tmp_path: Path) -> None:
    """400 lines pass, 401 do not."""
    (tmp_path / "fits").write_text("x\n" * 400, encoding="utf-8")
    (tmp_path / "long").write_text("x\n" * 401, encoding="utf-8")
    assert run("check_file_length.py", tmp_path / "fits") == (0, [])
    status, lines = run("check_file_length.py", tmp_path / "fits", tmp_path / "long")
    assert (status, lines) == (1, [f"{tmp_path / 'long'}: 401 lines, more than 400"])


def test_links(tmp_path: Path) -> None:
    """Missing files and headings are named; links to the net and inside code are left alone."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, here\n[a](page.md#a-title-here) [b](#nowhere) [c](gone.md) [d](https://x.y)\n"
        "```text\n[e](also-gone.md)\n```\n",
        encoding="utf-8",
    )
    status, lines = run("check_links.py", page)
    assert (status, lines) == (
        1,
        [f"{page}: broken link: #nowhere", f"{page}: broken link: gone.md"],
    )


def test_offline(tmp_path: Path) -> None:
    """What a page or a style sheet loads from a network is named; links to follow are not."""
    page, style = tmp_path / "page.html", tmp_path / "style.css"
    page.write_text(
        '<a href="https://follow.me">x</a><link rel="canonical" href="https://also.me">'
        '<img src="picture.svg"><img src="https://a.b/picture.svg"><script src="//a.b/c.js">'
        '</script><link rel="preload stylesheet" href="http://a.b/style.css">',
        encoding="utf-8",
    )
    style.write_text("p { background: url('https://a.b/c.png') } q { background: url(d.png) }")
    status, lines = run("check_offline.py", tmp_path)
    loaded = ["https://a.b/picture.svg", "//a.b/c.js", "http://a.b/style.css"]
    assert status == 1
    assert lines == [
        *(f"{page}: loads {address}" for address in loaded),
        f"{style}: loads https://a.b/c.png",
    ]
    page.write_text('<img src="picture.svg">', encoding="utf-8")
    style.unlink()
    assert run("check_offline.py", tmp_path) == (0, [])


def test_offline_without_pages(tmp_path: Path) -> None:
    """A book that was not made passes no check."""
    status, lines = run("check_offline.py", tmp_path)
    assert (status, lines) == (1, [f"{tmp_path}: expected HTML pages, found none"])


def gpu_check(
    tmp_path: Path, stage: str, stand_ins: dict[str, str], *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A run from its own folder, with these programs on the PATH, in addition to the system's."""
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    return subprocess.run(
        ["./gpu_check.sh", stage, *more],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "CUDA_HOME": str(tmp_path), **environment},
        check=False,
    )


def test_gpu_check_knows_its_stages(tmp_path: Path) -> None:
    """The refusal of an unknown stage lists the stages that exist."""
    done = gpu_check(tmp_path, "polish", {})
    assert done.returncode == 2
    stages = re.search("expected one of (.+), got 'polish'", done.stderr)
    assert stages is not None
    names = stages[1].split()
    assert {"build", "test", "experts", "python", "bench", "bench-qwen3", "bench-steps"} < {*names}
    for name in names:
        known = gpu_check(tmp_path, name, {"nvidia-smi": "exit 9"})
        assert "no NVIDIA GPU here" in known.stderr
    # Each has commands of its own, or is a model.
    commands = (SCRIPTS / "gpu_check.sh").read_text()
    for name in names:
        assert f"\n  {name})\n" in commands or f"[{name}]=" in commands


def test_gpu_check_helps_without_a_gpu(tmp_path: Path) -> None:
    done = gpu_check(tmp_path, "--help", {"nvidia-smi": "exit 9"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "  scripts/gpu_check.sh [STAGE...]" in lines
    assert lines[-1].startswith("Stages: build test ")


GPU_WITHOUT_PYTHON = {"nvidia-smi": "echo NVIDIA H200", "nvcc": "exit 1"}


def test_gpu_check_runs_several_stages_in_order(tmp_path: Path) -> None:
    programs = {**GPU_WITHOUT_PYTHON, "python3": "exit 0"}
    done = gpu_check(tmp_path, "bench-steps", programs, "bench-rows", WHEELS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    ended = [line for line in done.stdout.splitlines() if line.endswith(": done")]
    assert ended == ["gpu-check: bench-steps: done", "gpu-check: bench-rows: done"]


@pytest.mark.parametrize("stages", [("build", "polish"), ("build polish",), ("build test",)])
def test_gpu_check_starts_nothing_where_one_stage_is_unknown(
    stages: tuple[str, ...], tmp_path: Path
) -> None:
    done = gpu_check(tmp_path, stages[0], GPU_WITHOUT_PYTHON, *stages[1:], WHEELS=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert f", got '{stages[-1]}'\n" in done.stderr


@pytest.mark.parametrize(
    ("stage", "benches"),
    [
        ("bench", 1),
        *((f"bench-{name}", 2) for name in ("qwen3", "tp8", "ep8", "mixtral", "gpt-oss")),
        ("bench-zipf", 5),
        ("bench-rows", 4),
        ("bench-steps", 0),
    ],
)
def test_gpu_check_benches_with_options_that_exist(
    stage: str, benches: int, tmp_path: Path
) -> None:
    """The commands of a stage are understood: only a machine with a GPU would run them."""
    log = tmp_path / "commands"
    programs = {**GPU_WITHOUT_PYTHON, "python3": f'echo "$@" >>{log}'}
    done = gpu_check(tmp_path, stage, programs, WHEELS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    commands = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
    found = [command[3:] for command in commands if command[:3] == ["-m", "tessera", "bench"]]
    assert len(found) == benches
    for options in found:
        parsed = _parser().parse_args(["bench", *options])
        assert parsed.device == "cuda"
        assert {*(parsed.model or ())} <= {*MODELS}
    scripts = [command[0] for command in commands if command[0] != "-m"]
    assert scripts[-1] == "bench/performance_page.py"
    assert all((SCRIPTS.parent / script).is_file() for script in scripts)


def test_gpu_check_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    """Nothing passes where nothing was checked."""
    done = gpu_check(tmp_path, "test", {"nvidia-smi": "exit 9"})
    assert done.returncode == 1
    assert "no NVIDIA GPU here" in done.stderr


def test_gpu_check_without_nvcc_says_what_to_install_and_checks_the_cpu(tmp_path: Path) -> None:
    """A GPU without a compiler: the CPU's tests run, and the check still fails."""
    programs = {"nvidia-smi": "echo NVIDIA H200", "make": "echo ran make $*"}
    done = gpu_check(tmp_path, "test", programs)
    assert done.returncode == 1
    assert "has a GPU (NVIDIA H200), but no nvcc: install the CUDA toolkit 12.8" in done.stderr
    assert done.stdout == "ran make test\n"
    assert done.stderr.endswith("nothing was checked on the GPU\n")
