"""Environment variables, and the cost of an import. Each test runs in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import tessera
from programs import run_program
from tessera._op import op_names

CALL = """
import numpy as np, tessera
tessera.align_block_size(np.array([1, 0]), block_size=2, num_experts=2)
"""
SELECTED = """
import tessera
print(*[one.name for one in tessera.explain(8, 4, 2) if one.selected])
print(*[one.refusal for one in tessera.explain(8, 4, 2) if one.refusal], sep="; ")
"""


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run_program([sys.executable, "-c", code], **variables)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_impl_forces_an_implementation() -> None:
    free, forced = run(SELECTED), run(SELECTED, TESSERA_IMPL="cpu/reference")
    assert free.stdout.splitlines()[0] == "cpu/counting_sort"
    assert forced.stdout.splitlines() == [
        "cpu/reference",
        "not the implementation asked for, cpu/reference",
    ]
    verbose = run(CALL, TESSERA_IMPL="cpu/reference", TESSERA_VERBOSE="1")
    assert "runs cpu/reference" in verbose.stderr


def test_impl_that_is_not_there() -> None:
    for name in ("cpu/quantum", "reference"):  # the second without its backend
        done = run(CALL, TESSERA_IMPL=name)
        assert done.returncode == 1
        assert last_line(done.stderr) == (
            "NotImplementedError: align_block_size: implementation: expected cpu/counting_sort or "
            f"cpu/reference, got {name}, which TESSERA_IMPL asks for"
        )


def test_verbose_explains_each_call_in_one_line() -> None:
    assert run(CALL).stderr == ""
    (line,) = run(CALL, TESSERA_VERBOSE="1").stderr.splitlines()
    assert line.startswith("tessera: align_block_size: 2 ids, 2 experts, block_size 2")
    assert "runs cpu/counting_sort" in line


@pytest.mark.parametrize("op", op_names())
def test_verbose_names_the_implementation_of_every_op(op: str) -> None:
    code = f"""
from tessera import verification
from tessera._op import Op
op = Op({op!r})
for case in verification.case_names(op)[:2]:
    verification._run(op, verification.case_call(op, case, 0), "", -1)
print(*[name for name, refusal in verification.implementations(op, -1).items() if not refusal])
"""
    done = run(code, TESSERA_VERBOSE="1")
    first, *_ = done.stdout.split()
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"tessera: {op}: ")
        assert f"runs {first}" in line


@pytest.mark.parametrize("text", ["0", "-1", "many", "2x", "99999999999999999999"])
def test_num_threads_that_is_no_number(text: str) -> None:
    done = run(CALL, TESSERA_NUM_THREADS=text)
    assert last_line(done.stderr) == (
        f"ValueError: align_block_size: TESSERA_NUM_THREADS: expected an integer >= 1, got '{text}'"
    )


def test_num_threads_caps_the_pool() -> None:
    code = """
import os
from tessera.contract import synthetic_topk_ids
import tessera
tessera.version()
before = len(os.listdir("/proc/self/task"))
topk_ids = synthetic_topk_ids(524288, 64, 2)
tessera.align_block_size(topk_ids, block_size=64, num_experts=64)
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert run(code, TESSERA_NUM_THREADS="1").stdout == "0\n"
    if len(os.sched_getaffinity(0)) > 1:
        assert run(code, TESSERA_NUM_THREADS="2").stdout == "1\n"


def test_validation_is_align_block_sizes_alone() -> None:
    code = """
import numpy as np, tessera
ids = np.array([[5, -1]], np.int32)
tessera.batched_align_block_size(ids[0], max_tokens_per_batch=2, block_size=2)
rows = tessera.lora_align_block_size(
    ids, np.array([0], np.int32), block_size=2, num_experts=2, max_loras=1
)
print(rows.num_tokens_post_pad.tolist(), tessera.check())
tessera.align_block_size(ids, block_size=2, num_experts=2)
"""
    done = run(code, TESSERA_VALIDATE="1")
    assert done.stdout == "[0] 0\n"
    assert last_line(done.stderr).startswith("tessera.strict.InvalidRoutingError: align_block_size")


def test_import_is_light() -> None:
    code = "import sys, tessera; print([m for m in ('tvm_ffi', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_works_without_torch() -> None:
    show = "import sys; print(tessera.__version__, 'torch' in sys.modules)"
    done = run(CALL + show)
    assert (done.stdout, done.stderr) == (f"{tessera.__version__} False\n", "")
