"""Describes the machine, the build and the commit of results."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import tessera


def description(device: str, commit: str | None) -> dict[str, Any]:
    """Commit, date, machine and versions. `commit` overrides what git reports."""
    found: dict[str, Any] = {
        "commit": commit or _git("rev-parse", "HEAD"),
        "modified": None if commit else _is_modified(),
        "date": datetime.date.today().isoformat(),
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "build": tessera.build(),
        "device": device,
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("TESSERA_")},
    }
    if device == "cuda":
        found |= _gpu()
    return found


def _gpu() -> dict[str, Any]:
    import torch

    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    values = _output([*command, f"--id={torch.cuda.current_device()}"])
    names = ("driver", "clock_sm", "clock_sm_max", "clock_memory", "power")
    found = [value.strip() for value in (values or "").split(",")]
    return {
        "gpu": torch.cuda.get_device_name(),
        "num_sms": torch.cuda.get_device_properties("cuda").multi_processor_count,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        **(dict(zip(names, found, strict=True)) if len(found) == len(names) else {}),
    }


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _git(*arguments: str) -> str | None:
    """Output of a git command, if the current folder is a checkout of Tessera."""
    if not Path("include", "tessera").is_dir():
        return None
    return _output(["git", *arguments])


def _is_modified() -> bool | None:
    changes = _git("status", "--porcelain", "--", "src", "include", "python", "bench/peers")
    return None if changes is None else bool(changes)


def _processor() -> str:
    """The processor's model name."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
