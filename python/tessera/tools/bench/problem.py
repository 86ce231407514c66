"""A shape with its arrays, on the device of its contenders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera._device import HOST
from tessera._outputs import REFERENCE, output_sizes
from tessera.contract import Violation, contract_violations, synthetic_topk_ids
from tessera.tools.bench.contender import NotTimedError
from tessera.tools.bench.shapes import Shape

# Windows measured per size of a log: enough for a mean, and few enough for a CUDA graph.
MAX_WINDOWS = 20

# Value of every word of the outputs before a contender writes them: neither an index nor an expert.
POISON = -0x21524111


@dataclass(frozen=True)
class Problem:
    """Inputs of one call, and the lengths of its outputs by the contract.

    topk_ids, expert_map, outputs: NumPy arrays on the host, torch tensors on a GPU.
    outputs: None if every call allocates its own.
    """

    shape: Shape
    device: str
    host_ids: npt.NDArray[Any]
    host_map: npt.NDArray[np.int32] | None
    topk_ids: Any
    expert_map: Any
    num_slots: int
    num_blocks: int
    outputs: tuple[Any, Any, Any] | None

    @property
    def options(self) -> dict[str, Any]:
        """The op's arguments besides the ids."""
        return {
            "block_size": self.shape.block_size,
            "num_experts": self.shape.num_experts,
            "expert_map": self.expert_map,
        }

    def require_experts(self, why: str) -> None:
        """Refuse a contender that takes no ids of -1, as logs have them.

        Raises:
            NotTimedError: there are such ids.
        """
        if (self.host_ids < 0).any():
            raise NotTimedError(f"takes no ids of -1: {why}")

    def empty_outputs(self) -> tuple[Any, Any, Any]:
        """Arrays to write to: `outputs`, or new uninitialised ones."""
        if self.outputs is not None:
            return self.outputs
        lengths = (self.num_slots, self.num_blocks, 1)
        if self.device == "cpu":
            slots, blocks, total = (np.empty(length, np.int32) for length in lengths)
        else:
            import torch

            device = self.topk_ids.device
            slots, blocks, total = (
                torch.empty(length, dtype=torch.int32, device=device) for length in lengths
            )
        return slots, blocks, total

    def poison(self) -> None:
        """Overwrite the outputs, or the memory that the next call's will be allocated from."""
        for array in self.empty_outputs():
            array[...] = POISON

    def violations(self, outputs: tuple[Any, ...]) -> list[Violation]:
        """The violations that the contract's checker finds in these outputs, on any device."""
        host = tuple(
            array if isinstance(array, np.ndarray) else array.cpu().numpy() for array in outputs
        )
        return contract_violations(
            self.host_ids,
            host,
            block_size=self.shape.block_size,
            num_experts=self.shape.num_experts,
            expert_map=self.host_map,
        )


def make_problem(
    shape: Shape, device: str, seed: int, log_ids: npt.NDArray[np.int32] | None = None
) -> Problem:
    """The inputs of a shape, a function of the seed; `log_ids` are the ids of its routing log."""
    host_ids = _host_ids(shape, seed) if log_ids is None else log_ids.astype(shape.dtype)
    host_map = _half_remote(shape.num_experts) if shape.map == "half-remote" else None
    # Uses the reference, because with TESSERA_IMPL calls on the host may be refused.
    num_slots, num_blocks, _ = output_sizes(
        host_ids.size, shape.block_size, shape.num_experts, False, HOST, REFERENCE
    )
    outputs = None
    topk_ids, expert_map = _on(device, host_ids), _on(device, host_map)
    if shape.shift_bytes is not None:
        topk_ids = _shifted(topk_ids, shape.shift_bytes)
        slots, blocks, total = (
            _shifted(_on(device, np.zeros(length, np.int32)), shape.shift_bytes)
            for length in (num_slots, num_blocks, 1)
        )
        outputs = slots, blocks, total
    return Problem(
        shape,
        device,
        host_ids,
        host_map,
        topk_ids,
        expert_map,
        num_slots,
        num_blocks,
        outputs,
    )


def _host_ids(shape: Shape, seed: int) -> npt.NDArray[Any]:
    sizes = (shape.num_tokens, shape.num_experts, shape.top_k)
    ids = synthetic_topk_ids(*sizes, zipf=shape.skew == "zipf", seed=seed)
    if shape.skew == "one-hot-expert":
        hot = seed % shape.num_experts
        already = (ids == hot).any(axis=1)
        ids[~already, 0] = hot
    return ids.astype(shape.dtype, copy=False)


def _half_remote(num_experts: int) -> npt.NDArray[np.int32]:
    experts = np.arange(num_experts, dtype=np.int32)
    return np.where(experts % 2 == 0, experts // 2, -1).astype(np.int32)


def _on(device: str, array: npt.NDArray[Any] | None) -> Any:
    if array is None or device == "cpu":
        return array
    import torch

    return torch.from_numpy(array).to(device)


def _shifted(array: Any, shift_bytes: int) -> Any:
    """A copy that starts this many bytes past the beginning of an allocation."""
    if shift_bytes % array.itemsize:
        raise ValueError(
            f"--shift: expected a multiple of the elements' size, {array.itemsize} bytes, "
            f"got {shift_bytes}"
        )
    skipped = shift_bytes // array.itemsize
    if isinstance(array, np.ndarray):
        copy = np.empty(array.size + skipped, array.dtype)[skipped:].reshape(array.shape)
        copy[...] = array
        return copy
    memory = array.new_empty(array.numel() + skipped)
    return memory[skipped:].view(array.shape).copy_(array)
