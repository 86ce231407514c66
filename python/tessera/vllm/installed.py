"""The installed vLLM, with its functions served by Tessera."""

from __future__ import annotations

import importlib
from typing import Any

import tessera.vllm
from tessera.vllm.call_forms import CallableModule, accept_both_forms

_PACKAGE = "vllm.model_executor.layers.fused_moe"


def serve() -> None:
    """Import vLLM, let Tessera serve its functions, and let programs use either order of arguments.

    vLLM's own modules use one order, and keep the function that `install` gives them.

    Raises:
        RuntimeError: vLLM cannot be imported.
    """
    try:
        module: Any = importlib.import_module(f"{_PACKAGE}.moe_align_block_size")
        tessera.vllm.install(wrapper=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RuntimeError(f"vllm: expected a package that can be imported, got {reason}") from None
    module.moe_align_block_size = accept_both_forms(module.moe_align_block_size)
    module.__class__ = CallableModule
    package: Any = importlib.import_module(_PACKAGE)
    package.moe_align_block_size = module  # as in most versions; in others it is the function
