"""Environment variables, and the cost of an import. Each test runs in a separate process."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import tessera
from programs import run_program
from tessera._device import HOST
from tessera._op import Op, op_names
from tessera.verification import implementations

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


CASE = """
import sys
from tessera import verification
from tessera._op import Op
for name in sys.argv[1:]:
    op = Op(name)
    try:
        verification._run(op, verification.case_call(op, verification.case_names(op)[0], 0), "", -1)
        print(name, "ran")
    except NotImplementedError as error:
        print(error)
"""


@pytest.mark.parametrize("name", ["cpu/nope", "nope"])
def test_every_op_refuses_a_name_that_no_op_has(name: str) -> None:
    done = run_program([sys.executable, "-c", CASE, *op_names()], TESSERA_IMPL=name)
    for op, line in zip(op_names(), done.stdout.splitlines(), strict=True):
        *most, last = implementations(Op(op), HOST)
        known = f"{', '.join(most)} or {last}" if most else last
        assert line == (
            f"{op}: implementation: expected {known}, got {name}, which TESSERA_IMPL asks for"
        )


@pytest.mark.parametrize("name", ["cpu/counting_sort", "cpu/portable"])
def test_a_name_of_another_op_does_not_affect_an_op_without_a_choice(name: str) -> None:
    ops = ["batched_align_block_size", "lora_align_block_size"]
    done = run_program([sys.executable, "-c", CASE, *ops], TESSERA_IMPL=name)
    assert done.stdout.splitlines() == [f"{op} ran" for op in ops]


def test_an_implementation_of_one_data_type_has_new_outputs_new_outputs() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    name, shape = "cpu/avx512_bf16", dict.fromkeys("THEFk", 8)
    explained = tessera.explain(
        "fused_experts", **shape, activation="silu", dtype="bfloat16", device="cpu"
    )
    refusals = [one.refusal for one in explained if one.name == name and "proces" in one.refusal]
    if refusals:
        pytest.skip(refusals[0])
    code = """
import torch, tessera
x, w13, w2 = (torch.ones(*shape).bfloat16() for shape in [(1, 8), (1, 16, 8), (1, 8, 8)])
ids = torch.zeros((1, 1), dtype=torch.int32)
print(tessera.fused_experts(x, w13, w2, torch.ones((1, 1)), ids).dtype)
"""
    done = run(code, TESSERA_IMPL=name, PYTHONPATH="")
    assert done.stdout == "torch.bfloat16\n", done.stderr


def test_an_implementation_that_cannot_run_the_call() -> None:
    """The message says what it lacks, and names those that can run."""
    code = """
import numpy as np, tessera
x, w13, w2 = (np.ones(shape, np.float16) for shape in [(1, 8), (1, 16, 8), (1, 8, 8)])
tessera.fused_experts(x, w13, w2, np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32))
"""
    done = run(code, TESSERA_IMPL="cpu/avx512_bf16")
    assert re.fullmatch(
        "NotImplementedError: fused_experts: implementation: expected .*cpu/portable or "
        "cpu/reference, got cpu/avx512_bf16, which TESSERA_IMPL asks for; it (needs a processor "
        "with AVX-512 and AVX512_BF16|multiplies bfloat16 numbers alone|was not built with this "
        "compiler)",
        last_line(done.stderr),
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


def test_variables_are_read_once() -> None:
    later = 'import os\nos.environ.update(TESSERA_IMPL="cpu/quantum", TESSERA_VERBOSE="1")\n'
    done = run(CALL + later + CALL)
    assert (done.returncode, done.stderr) == (0, "")
    assert run(later + CALL).returncode == 1
