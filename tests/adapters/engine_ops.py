"""Alignment ops of vLLM and SGLang in plain Python: what their stand-ins do without Tessera."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from oracle import expected_blocks

# The names of the functions below that have run, in order: calls that Tessera did not serve.
calls: list[str] = []


def _fill(outputs: Iterable[Any], values: Iterable[list[int]], fillers: Iterable[int]) -> None:
    for output, given, filler in zip(outputs, values, fillers, strict=True):
        output.fill_(filler)
        for index, value in enumerate(given[: output.numel()]):
            output.view(-1)[index] = value


def align(
    topk_ids: Any,
    num_experts: int,
    block_size: int,
    out: tuple[Any, ...],
    *,
    tail: int,
    expert_map: Any = None,
) -> None:
    calls.append("align")
    blocks = expected_blocks(
        topk_ids.flatten().tolist(),
        block_size,
        num_experts,
        None if expert_map is None else expert_map.tolist(),
        expert_map is not None,
        tail_expert=tail,
    )
    _fill(out, blocks[:3], (topk_ids.numel(), tail, 0))


def scatter(num_ids: int, sorted_token_ids: Any, scatter_idx: Any) -> None:
    calls.append("scatter")
    for slot, index in enumerate(sorted_token_ids.tolist()):
        if index < num_ids:
            scatter_idx[index] = slot


def batched(max_tokens: int, block_size: int, expert_num_tokens: Any, out: tuple[Any, ...]) -> None:
    calls.append("batched")
    filler = len(expert_num_tokens) * max_tokens
    slots: list[int] = []
    experts: list[int] = []
    for batch, count in enumerate(expert_num_tokens.tolist()):
        num_blocks = -(-count // block_size)
        slots += range(batch * max_tokens, batch * max_tokens + count)
        slots += [filler] * (num_blocks * block_size - count)
        experts += [batch] * num_blocks
    _fill(out, (slots, experts, [len(slots)]), (filler, -1, 0))


def active_adapters(lora_ids: Any, adapter_enabled: Any) -> list[int]:
    return [adapter for adapter in lora_ids.tolist() if adapter >= 0 and adapter_enabled[adapter]]


def lora(
    topk_ids: Any,
    token_lora_mapping: Any,
    num_experts: int,
    block_size: int,
    max_loras: int,
    adapters: list[int],
    out: tuple[Any, ...],
    *,
    expert_map: Any = None,
) -> None:
    calls.append("lora")
    for adapter in adapters:
        ids = topk_ids.clone()
        ids[token_lora_mapping != adapter] = num_experts  # which is dropped
        rows = tuple(output.view(max_loras, -1)[adapter] for output in out)
        align(ids, num_experts, block_size, rows, tail=-1, expert_map=expert_map)


def align_with_filtered(
    topk_ids: Any, num_buckets: int, block_size: int, out: tuple[Any, ...], *, tail: int | None
) -> None:
    """SGLang's: the bucket of an id is the id + 1, and a block shows its bucket - 1."""
    calls.append("align_with_filtered")
    blocks = expected_blocks((topk_ids.flatten() + 1).tolist(), block_size, num_buckets)
    num_used = blocks.num_tokens_post_pad[0] // block_size
    experts = [bucket - 1 for bucket in blocks.expert_ids[:num_used]]
    experts += out[1].tolist()[num_used:] if tail is None else [tail] * out[1].numel()
    _fill(
        out,
        (blocks.sorted_token_ids, experts, blocks.num_tokens_post_pad),
        (topk_ids.numel(), -1, 0),
    )
