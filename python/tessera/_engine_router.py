"""`select_experts` as engines call their routers: with tensors to write to, or without."""

from __future__ import annotations

import functools
from collections.abc import Callable
from numbers import Integral
from typing import Any, TypeVar

import torch

import tessera
from tessera._plain_tensor import check_apart, check_contiguous, check_plain, check_tensor
from tessera._renaming import renamed
from tessera._shown import shown

Function = TypeVar("Function", bound=Callable[..., Any])

_IDS_TYPES = (torch.int32, torch.uint32, torch.int64)


def engine_names(op: str, **names: str) -> Callable[[Function], Function]:
    """Let refusals of a function name the engine's op and arguments.

    Args:
        op: the engine's name of the op.
        names: the engine's names of arguments, by Tessera's.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except (TypeError, ValueError, NotImplementedError) as error:
                message = renamed(str(error), names, op)
                if message == str(error):
                    raise
                raise type(error)(message) from None

        return call  # type: ignore[return-value]

    return decorate


def check_integer(op: str, name: str, value: object, least: int, most: int) -> None:
    """Refuse what is no integer in [least, most].

    Raises:
        TypeError: it is no integer; a bool is none.
        ValueError: it lies outside.
    """
    if isinstance(value, bool) or not isinstance(value, (int, Integral)):
        raise TypeError(f"{op}: {name}: expected an integer, got {type(value).__name__}")
    if not least <= int(value) <= most:
        got = shown(value)
        raise ValueError(f"{op}: {name}: expected an integer in [{least}, {most}], got {got}")


def _check_ids_type(op: str, name: str, dtype: object) -> None:
    if dtype not in _IDS_TYPES:
        raise TypeError(f"{op}: {name}: expected int32, uint32 or int64, got {dtype}")


def _expect(op: str, name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: Any) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"{op}: {name}: expected {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
        )


def _check_bias(op: str, bias: torch.Tensor) -> None:
    check_tensor(op, "correction_bias", bias)
    if not bias.is_floating_point():
        raise TypeError(f"{op}: correction_bias: expected a floating-point type, got {bias.dtype}")


def select_into(
    op: str,
    router_logits: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    correction_bias: torch.Tensor | None = None,
    routed_scaling_factor: float = 1.0,
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
        routed_scaling_factor: as `tessera.select_experts`.
        is_padding: bool [T]: tokens that get ids -1.
        token_expert_indices: int32 [T, k]; element (t, s) becomes s * T + t.
        options: of `tessera.select_experts`.
    """
    check_plain(op, "router_logits", router_logits)
    # What torch reads or writes here, and `select_experts` does not see.
    outputs = {"topk_weights": topk_weights, "topk_ids": topk_ids}
    if token_expert_indices is not None:
        outputs["token_expert_indices"] = token_expert_indices
    read = {} if is_padding is None else {"is_padding": is_padding}
    for name, tensor in (read | outputs).items():
        check_plain(op, name, tensor, device=router_logits.device)
    check_plain(op, "topk_weights", topk_weights, num_axes=2)
    num_tokens, top_k = shape = topk_weights.shape
    _check_ids_type(op, "topk_ids", topk_ids.dtype)
    _expect(op, "topk_ids", topk_ids, topk_ids.dtype, shape)
    if token_expert_indices is not None:
        _expect(op, "token_expert_indices", token_expert_indices, torch.int32, shape)
    if is_padding is not None:
        _expect(op, "is_padding", is_padding, torch.bool, (num_tokens,))
    for name, tensor in outputs.items():
        check_contiguous(op, name, tensor)
    read["router_logits"] = router_logits
    if correction_bias is not None:
        _check_bias(op, correction_bias)
        read["correction_bias"] = correction_bias
    check_apart(op, outputs, read)
    if correction_bias is not None:
        correction_bias = correction_bias.detach().to(torch.float32)
    if isinstance(routed_scaling_factor, bool):  # to the FFI it is a number
        raise TypeError(f"{op}: routed_scaling_factor: expected a number, got bool")
    if topk_ids.dtype == torch.int64:
        ids = torch.empty_like(topk_ids, dtype=torch.int32)
    else:  # the ids of experts have the same bits in both types of 32 bits
        ids = topk_ids.view(torch.int32)
    tessera.select_experts(
        router_logits,
        top_k=top_k,
        correction_bias=correction_bias,
        routed_scaling_factor=routed_scaling_factor,
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
    check_plain(op, "router_logits", router_logits, num_axes=2)
    num_tokens, num_experts = router_logits.shape
    check_integer(op, "top_k", top_k, 1, num_experts)
    if indices_type is not None:
        _check_ids_type(op, "indices_type", indices_type)
    check_tensor(op, "hidden_states", hidden_states)
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


def refuse_single_experts(op: str, router_logits: torch.Tensor, num_expert_group: object) -> None:
    """Refuse groups of one expert with a bias: the engines have no sum of two scores for them.

    Raises:
        NotImplementedError: there are several groups, of one expert each.
        TypeError, ValueError: the logits are no plain tensor [T, E].
    """
    check_plain(op, "router_logits", router_logits, num_axes=2)
    groups = int(num_expert_group) if isinstance(num_expert_group, (int, Integral)) else 0
    if 1 < groups == router_logits.shape[1]:
        raise NotImplementedError(
            f"{op}: num_expert_group: expected groups of 2 experts or more, got {groups} groups "
            "of 1"
        )


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
