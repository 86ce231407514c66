"""`python -m tessera.vllm` on a GPU: the first call of a process, as a script times it."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from launching import TIMED, launch, output

no_vllm = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")


@no_vllm
def test_the_first_call_of_a_process_is_not_slow(tmp_path: Path) -> None:
    import torch

    durations = []
    for _ in range(5):  # other programs on the machine may delay some of them
        found = re.fullmatch(r"Duration: (\d+\.\d{4}) seconds\n", output(tmp_path, TIMED))
        assert found is not None
        durations.append(float(found[1]))
    if "H200" not in torch.cuda.get_device_name():
        pytest.skip("the limit is for an H200")
    assert min(durations) <= 0.0004


@no_vllm
def test_the_device_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    import torch

    last = torch.cuda.device_count() - 1
    script = "import torch; print(torch.cuda.current_device(), torch.ones(1).cuda().get_device())"
    assert output(tmp_path, script, "--device", f"cuda:{last}") == f"{last} {last}\n"
    done = launch(tmp_path, "--device", f"cuda:{last + 1}", "script.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


@no_vllm
def test_a_gpu_can_be_left_alone(tmp_path: Path) -> None:
    script = "import torch; print(torch.ones(1, device='cuda').device)"
    assert output(tmp_path, script, "--device", "cpu") == "cpu\n"
