"""Device names in arguments."""

from __future__ import annotations

import re
import sys
from typing import Any

from tessera._shown import shown

# Stands for the host in place of the index of a CUDA device.
HOST = -1

# DLPack has 32 bits for the number of a device.
_MOST = 2**31 - 1


def cuda_index_of(op: str, device: Any) -> int:
    """Index of the CUDA device that "cuda", "cuda:1", 1 or a `torch.device` stands for, or HOST.

    Without a number it is torch's current device, or 0 if torch has not initialised CUDA.

    Raises:
        TypeError: `device` has none of these types.
        ValueError: `device` names neither the host nor a CUDA device.
    """
    if isinstance(device, int) and not isinstance(device, bool):
        if 0 <= device <= _MOST:
            return device
        raise ValueError(f"{op}: device: expected the number of a CUDA device, got {shown(device)}")
    torch = sys.modules.get("torch")  # which may be a stub
    if not isinstance(device, (str, getattr(torch, "device", str))):
        kind = type(device).__name__
        raise TypeError(
            f"{op}: device: expected a string, an integer or a torch.device, got {kind}"
        )
    if device_name := re.fullmatch(r"cpu(?::0)?|cuda(?::(\d{1,9}))?", str(device)):
        if device_name[0].startswith("cpu"):
            return HOST
        if device_name[1] is not None:
            return int(device_name[1])
        cuda = getattr(torch, "cuda", None)
        return cuda.current_device() if cuda and cuda.is_initialized() else 0
    raise ValueError(f"{op}: device: expected cpu, cuda or cuda:N, got {str(device)!r}")
