"""`select_experts` as engines call their routers: with tensors to write to, or without."""

from __future__ import annotations

from typing import Any

import torch

import tessera
from tessera._plain_tensor import check_plain


def _expect(op: str, name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: Any) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"{op}: {name}: expected {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
        )


def _check_outputs(op: str, device: torch.device, outputs: dict[str, torch.Tensor]) -> None:
    """Check what torch writes here, which `select_experts` does not see."""
    seen: list[tuple[int, int, str]] = []
    for name, tensor in outputs.items():
        if tensor.device != device:
            raise ValueError(f"{op}: {name}: expected a tensor on {device}, got {tensor.device}")
        if not tensor.is_contiguous():
            raise ValueError(
                f"{op}: {name}: expected a contiguous tensor, got strides {list(tensor.stride())}"
            )
        # Tensors that are traced have no memory.
        if torch.compiler.is_compiling() or type(tensor) is not torch.Tensor:
            continue
        begin = tensor.data_ptr()
        end = begin + tensor.numel() * tensor.element_size()
        for other_begin, other_end, other in seen:
            if begin < other_end and other_begin < end:
                raise ValueError(f"{op}: {name}: expected memory of its own, got some of {other}'s")
        seen.append((begin, end, name))


def select_into(
    op: str,
    router_logits: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    correction_bias: torch.Tensor | None = None,
    is_padding: torch.Tensor | None = None,
    token_expert_indices: torch.Tensor | None = None,
    **options: Any,
) -> None:
    """Choose experts into an engine's tensors; refuses a call before it writes anything.

    Args:
        op: the engine's name of the op, for messages.
        router_logits: [T, E], as `tessera.select_experts`.
        topk_weights: float32 [T, k].
        topk_ids: int32, uint32 or int64 [T, k].
        correction_bias: [E] of any floating-point type.
        is_padding: bool [T]: tokens that get ids -1.
        token_expert_indices: int32 [T, k]; element (t, s) becomes s * T + t.
        options: of `tessera.select_experts`.
    """
    check_plain(op, "router_logits", router_logits)
    check_plain(op, "topk_ids", topk_ids)
    if topk_weights.dim() != 2:
        raise ValueError(f"{op}: topk_weights: expected 2 axes, got {topk_weights.dim()}")
    num_tokens, top_k = shape = topk_weights.shape
    if topk_ids.dtype not in (torch.int32, torch.uint32, torch.int64):
        raise TypeError(f"{op}: topk_ids: expected int32, uint32 or int64, got {topk_ids.dtype}")
    _expect(op, "topk_ids", topk_ids, topk_ids.dtype, shape)
    if token_expert_indices is not None:
        _expect(op, "token_expert_indices", token_expert_indices, torch.int32, shape)
    outputs = {"topk_weights": topk_weights, "topk_ids": topk_ids}
    if token_expert_indices is not None:
        outputs["token_expert_indices"] = token_expert_indices
    _check_outputs(op, router_logits.device, outputs)
    if is_padding is not None:
        _expect(op, "is_padding", is_padding, torch.bool, (num_tokens,))
    if correction_bias is not None:
        correction_bias = correction_bias.detach().to(torch.float32)
    if topk_ids.dtype == torch.int64:
        ids = torch.empty_like(topk_ids, dtype=torch.int32)
    else:  # the ids of experts have the same bits in both types of 32 bits
        ids = topk_ids.view(torch.int32)
    tessera.select_experts(
        router_logits,
        top_k=top_k,
        correction_bias=correction_bias,
        out=(topk_weights, ids),
        **options,
    )
    if is_padding is not None:
        ids.masked_fill_(is_padding.unsqueeze(1), -1)
    if topk_ids.dtype == torch.int64:
        topk_ids.copy_(ids)
    if token_expert_indices is not None:
        order = torch.arange(num_tokens * top_k, dtype=torch.int32, device=topk_ids.device)
        token_expert_indices.copy_(order.view(top_k, num_tokens).t())


def select_new(
    op: str,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    top_k: int,
    *,
    indices_type: torch.dtype | None = None,
    with_indices: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, ...]:
    """Choose experts into new tensors, as `select_into` does.

    Args:
        op: the engine's name of the function, for messages.
        hidden_states: [T, ...]; only its number of tokens matters.
        router_logits: [T, E].
        top_k: experts per token.
        indices_type: type of the ids; None stands for int32.
        with_indices: also return `token_expert_indices`.
        options: of `select_into`.

    Returns:
        topk_weights float32 [T, k], topk_ids [T, k] and, if asked for, token_expert_indices.
    """
    check_plain(op, "router_logits", router_logits)
    num_tokens = router_logits.shape[0]
    if hidden_states.shape[:1] != (num_tokens,):
        raise ValueError(
            f"{op}: hidden_states: expected {num_tokens} tokens, as many as the logits have, got "
            f"shape {list(hidden_states.shape)}"
        )
    dtypes = (torch.float32, torch.int32 if indices_type is None else indices_type, torch.int32)
    results = tuple(
        router_logits.new_empty((num_tokens, top_k), dtype=dtype)
        for dtype in dtypes[: 3 if with_indices else 2]
    )
    indices = results[2] if with_indices else None
    select_into(op, router_logits, *results[:2], token_expert_indices=indices, **options)
    return results


def refuse(op: str, **unserved: object) -> None:
    """Refuse arguments that Tessera does not serve.

    Raises:
        NotImplementedError: one of them is neither None nor False nor 0.
    """
    for name, value in unserved.items():
        plain = isinstance(value, (bool, int, float, str))
        if value is not None and not (plain and not value):
            shown = repr(value) if plain else type(value).__name__
            raise NotImplementedError(f"{op}: {name}: expected none, got {shown}")
