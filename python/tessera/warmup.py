"""Does the work in advance that makes the first call on a device slow."""

from __future__ import annotations

import sys
from typing import Any

from tessera._device import HOST, cuda_index_of
from tessera._library import dlpack_device, load, refusal
from tessera.ops.align_block_size import align_block_size


def warmup(device: Any = "cuda") -> None:
    """Load the library, create the device's context, and load the code of every kernel.

    No call requires it: otherwise the first call on a device does the same, and takes as long. If
    torch is installed, two small calls follow, so that torch's allocator has memory on the device,
    and the device is synchronised. So it must not be called while a graph is being captured.

    Args:
        device: "cpu", "cuda", "cuda:1", the number of a CUDA device, or a `torch.device`. "cuda" is
            torch's current device. On the CPU only the library is loaded.

    Raises:
        TypeError, ValueError: `device` names no device.
        NotImplementedError: this build cannot use the device; the message says why.
        RuntimeError: the driver reported a failure.
    """
    index = cuda_index_of("warmup", device)
    try:
        load().function("warmup")(*dlpack_device(index))
    except Exception as error:
        raise refusal("warmup", error, {}, {}) from None
    torch = sys.modules.get("torch")  # the FFI has imported it if it is installed
    if index == HOST or torch is None or not torch.cuda.is_available():
        return
    topk_ids = torch.zeros((1, 1), dtype=torch.int32, device=f"cuda:{index}")
    out = align_block_size(topk_ids, block_size=1, num_experts=1)
    align_block_size(topk_ids, block_size=1, num_experts=1, out=out)
    torch.cuda.synchronize(index)
