"""Runs `python -m tessera.vllm` for tests, in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LAUNCHER = [sys.executable, "-m", "tessera.vllm"]


def launch(
    folder: Path, *arguments: str, path: Sequence[Path] = (), stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it in a folder; `path` holds further folders to import from."""
    paths = [*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {name: value for name, value in os.environ.items() if "TESSERA" not in name}
    return subprocess.run(
        [*LAUNCHER, *arguments],
        cwd=folder,
        input=stdin,
        env=variables | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def output(folder: Path, script: str, *options: str, path: Sequence[Path] = ()) -> str:
    """The output of a script, which must not fail."""
    (folder / "script.py").write_text(script)
    done = launch(folder, *options, "script.py", path=path)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# The way in which users time the op: the first call of a process, from and to an idle GPU.
TIMED = """
import time
import torch
from vllm.model_executor.layers.fused_moe import moe_align_block_size

topk_ids = torch.randint(0, 64, (8192,), dtype=torch.int32, device="cuda")
torch.cuda.synchronize()
start = time.time()
sorted_ids, expert_ids, num_tokens_post_pad = moe_align_block_size(topk_ids, 64, 128, 2)
torch.cuda.synchronize()
print(f"Duration: {time.time() - start:.4f} seconds")
assert [len(out) for out in (sorted_ids, expert_ids)] == [8192 + 64 * 127, 128], "lengths"
assert sorted(sorted_ids[sorted_ids < 8192].tolist()) == list(range(8192)), "indices"
"""
