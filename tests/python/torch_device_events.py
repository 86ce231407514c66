"""The device's events during a call, from torch's profiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable


def device_events(call: Callable[[], object]) -> list[str]:
    """Names of the kernels, copies and memsets of a call that was made once before."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with warnings.catch_warnings():  # that it keeps the events of one cycle only
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
        events = profiler.events()
    on_device = torch.autograd.DeviceType.CUDA
    return [event.name for event in events if event.device_type == on_device]
