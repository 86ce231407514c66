"""Tessera in SGLang's place, in this process: `install()`, `uninstall()`, and SGLang's plugin.

SGLang's op gives the pairs that expert parallelism has filtered out, with id -1, a group of their
own, the first, and counts it in `num_experts`. docs/sglang.md has the details. Neither torch nor
SGLang is imported before `install()` is called.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from types import ModuleType
from typing import Any, NamedTuple

import tessera
from tessera._patching import Function, Patches, check_plain

_logger = logging.getLogger("tessera.sglang")
_patches = Patches(_logger)
_OP = "moe_align_block_size"


def moe_align_block_size(
    topk_ids: Any,
    num_experts: int,
    block_size: int,
    sorted_token_ids: Any,
    experts_ids: Any,
    num_tokens_post_pad: Any,
    cumsum_buffer: Any,
    pad_sorted_token_ids: bool = False,
    ignore_invalid_expert: bool = False,
) -> None:
    """SGLang's op, served by Tessera: its parameters, results written to the caller's tensors.

    Args:
        topk_ids: torch tensor of any shape and integer type, with ids in [-1, num_experts - 1).
            Other ids are dropped.
        num_experts: number of experts, and one for the group of the id -1, whose blocks show -1.
        block_size: slots in a block, at least 1.
        sorted_token_ids: int32, at least N + min(N, num_experts) * (block_size - 1) elements.
        experts_ids: int32, an element for each block of that; past the last block it becomes -1.
        num_tokens_post_pad: int32[1].
        cumsum_buffer: not needed.
        pad_sorted_token_ids: whether slots without a pair are to be filled; they always are.
        ignore_invalid_expert: not served; False.

    Raises:
        TypeError, ValueError, NotImplementedError: the call cannot be served. Nothing was written.
    """
    if ignore_invalid_expert:
        raise NotImplementedError(f"{_OP}: ignore_invalid_expert: expected False, got True")
    check_plain(_OP, "topk_ids", topk_ids)
    tessera.align_block_size(
        topk_ids,
        block_size=block_size,
        num_experts=num_experts - 1,
        filtered_group=True,
        out=(sorted_token_ids, experts_ids, num_tokens_post_pad),
    )


def compiled_at_run_time(
    *args: Any,
    write_inactive_prefix_count: bool = False,
    map_invalid_experts_to_sentinel: bool = False,
    pad_expert_ids: bool = False,
) -> None:
    """The op of SGLang's that is compiled at run time, served by `moe_align_block_size`.

    Args:
        args: those of `moe_align_block_size`.
        write_inactive_prefix_count: not served; False.
        map_invalid_experts_to_sentinel: not served; False.
        pad_expert_ids: whether the experts past the last block are to be -1; they always are.
    """
    if write_inactive_prefix_count or map_invalid_experts_to_sentinel:
        raise NotImplementedError(
            f"{_OP}: write_inactive_prefix_count, map_invalid_experts_to_sentinel: expected False, "
            f"got {write_inactive_prefix_count}, {map_invalid_experts_to_sentinel}"
        )
    moe_align_block_size(*args)


# The parameters that every version's op begins with that is served: SGLang's since 0.4.10.
_PARAMETERS = (
    "topk_ids",
    "num_experts",
    "block_size",
    "sorted_token_ids",
    "experts_ids",
    "num_tokens_post_pad",
    "cumsum_buffer",
    "pad_sorted_token_ids",
)
_COMPILED_PARAMETERS = (*_PARAMETERS[:4], "expert_ids", *_PARAMETERS[5:])


class _Target(NamedTuple):
    module: ModuleType
    parameters: tuple[str, ...]
    serve: Function


def _targets() -> list[_Target]:
    """Where this SGLang looks its op up, the parameters there, and what is to serve it."""
    try:  # 2026: a function that picks a backend, and the backend that is compiled at run time
        kernels = importlib.import_module("sglang.kernels.ops.moe")
    except ModuleNotFoundError:
        return [_Target(importlib.import_module("sgl_kernel"), _PARAMETERS, moe_align_block_size)]
    targets = [_Target(kernels, _PARAMETERS, moe_align_block_size)]
    try:
        compiled = importlib.import_module("sglang.kernels.ops.moe.moe_align")
    except ImportError:  # a platform without that backend
        return targets
    return [*targets, _Target(compiled, _COMPILED_PARAMETERS, compiled_at_run_time)]


def _switched_off() -> bool:
    off = os.environ.get("TESSERA_SGLANG") == "0"
    if off:
        _logger.info("TESSERA_SGLANG is 0: SGLang is left as it is")
    return off


def _start() -> None:
    if not _patches.active:
        version = importlib.import_module("sglang").__version__
        _logger.info("SGLang %s: Tessera serves %s", version, ", ".join(_patches.names))
    _patches.active = True


def install() -> list[str]:
    """Let Tessera serve SGLang's alignment op in this process; may be called any number of times.

    Does nothing if the environment variable TESSERA_SGLANG is 0.

    Returns:
        Full names of the functions that are replaced.

    Raises:
        ImportError: SGLang or its kernels cannot be imported.
    """
    if _switched_off():
        return []
    with _patches.lock:
        for module, parameters, serve in _targets():
            _patches.replace(module, _OP, parameters, serve)
        _start()
        return _patches.names


def uninstall() -> None:
    """Give SGLang its own op back; nothing happens if it was not replaced."""
    with _patches.lock:
        if names := _patches.restore():
            _logger.info("SGLang's own functions are back: %s", ", ".join(names))


def plugin() -> None:
    """What SGLang calls in each of its processes: hooks on its op, which it then puts in itself.

    Must not keep SGLang from starting.
    """
    try:
        if _switched_off():
            return
        hooks = importlib.import_module("sglang.srt.plugins.hook_registry")
        register = functools.partial(hooks.HookRegistry.register, hook_type=hooks.HookType.AROUND)
        with _patches.lock:
            for module, parameters, serve in _targets():
                _patches.hook(module, _OP, parameters, serve, register)
            _start()
    except Exception:
        _logger.exception("SGLang runs without Tessera")
