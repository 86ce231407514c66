"""Runs the Python examples as a user would, each in a separate process."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples/python"
# Each example, and part of what it prints.
PRINTED = {
    "align_cupy.py": "slots with padding: ",
    "align_jax.py": "slots with padding: ",
    "align_numpy.py": "largest difference from the plain loop: ",
    "align_torch.py": "same memory in every call: True",
    "align_torch_compile.py": "1000 tokens: ",
    "expert_parallel.py": "together the same as one process: ",
    "fused_experts.py": "of the error bound used",
    "record_routing.py": "wrote 300 tokens of 2 layers to recorded.jsonl",
    "select_and_align_numpy.py": "largest difference from the plain loop: ",
    "transformers_generate.py": "tokens as chosen with eager experts: 16 of 16",
    "vllm_swap.py": "in ascending order inside each expert: True",
}


@pytest.mark.parametrize("example", PRINTED)
def test_example(example: str, tmp_path: Path) -> None:
    """An example exits with 0, and says what it should, or why it cannot run here."""
    code = (EXAMPLES / example).read_text(encoding="utf-8")
    if "\nimport torch\n" in code and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    launcher = ["-m", "tessera.vllm", "--device", "cpu"] if example == "vllm_swap.py" else []
    finished = subprocess.run(
        [sys.executable, *launcher, EXAMPLES / example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    if finished.stdout.startswith("skipped: "):
        pytest.skip(finished.stdout.removeprefix("skipped: ").strip())
    assert PRINTED[example] in finished.stdout


def test_a_program_for_vllm_without_it() -> None:
    """One line says what is missing."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("vllm") is not None:
        pytest.skip("torch is not installed, or vLLM is")
    command = [sys.executable, EXAMPLES / "vllm_swap.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "vllm_swap.py: vLLM is not installed; python -m tessera.vllm runs this without it\n"
    )


def test_every_example_is_run() -> None:
    """A new example needs a line above."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTED)
