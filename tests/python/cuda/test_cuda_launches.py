"""A call is exactly one kernel on the device: no memset, no copy, no second kernel."""

from __future__ import annotations

from typing import Any

import pytest

import tessera
from torch_device_events import device_events

torch = pytest.importorskip("torch", reason="torch is not installed")


@pytest.mark.parametrize("num_tokens", [1, 16, 64, 256, 4096, 65536, 300_000])
@pytest.mark.parametrize("reports", [False, True])
def test_one_kernel(num_tokens: int, reports: bool) -> None:
    topk_ids = torch.randint(256, (num_tokens, 8), dtype=torch.int32, device="cuda")
    options: dict[str, Any] = {"block_size": 64, "num_experts": 256}
    if reports:
        options["expert_counts"] = torch.empty(256, dtype=torch.int32, device="cuda")
        options["num_dropped"] = torch.empty(1, dtype=torch.int32, device="cuda")
        options["statistics"] = torch.empty(6, dtype=torch.float64, device="cuda")
        options["validate"] = True
    events = device_events(lambda: tessera.align_block_size(topk_ids, **options))
    tessera.check()
    assert len(events) == 1, events
    assert "_kernel" in events[0]
