"""Validated calls on a GPU, of good and bad ids."""

from __future__ import annotations

from typing import Any

import pytest

import tessera
from cuda_calls import host_ids, options_of

SHAPE = (64, 256, 8, 16)
OPTIONS = options_of(SHAPE)
MESSAGE = (
    r"topk_ids\[17\]: expected an id in \[0, 256\), got 999 \(token 2, slot 1; 1 invalid id in"
)


def ids_on_device(bad: bool) -> Any:
    import torch

    ids = host_ids(SHAPE, 1).copy()
    if bad:
        ids.reshape(-1)[17] = 999
    return torch.from_numpy(ids).cuda()


def memory_at_hand() -> list[Any]:
    """What to keep, so that this thread's next arrays need no memory from the driver.

    To ask for it breaks other threads' captures, at whose beginning torch gives back whatever
    memory is not partly in use.
    """
    import torch

    blocks = [torch.empty(1 << 18, dtype=torch.uint8, device="cuda") for _ in range(64)]
    return blocks[::2]


def call(ids: Any) -> None:
    tessera.align_block_size(ids, validate=True, **OPTIONS)


def calls_at_once(ids: Any) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match=MESSAGE):
            tessera.align_block_size(ids, validate="now", **OPTIONS)
    assert tessera.check() == 0
