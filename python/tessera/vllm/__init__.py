"""Tessera in vLLM's place, in this process: `install()`, `uninstall()`, and vLLM's plugin.

vLLM's ops for alignment, routing and rows are replaced in `vllm._custom_ops`, where vLLM looks them
up, and its Python functions of routing, permuting and experts where they are defined; calls that
Tessera refuses go to vLLM's own. docs/vllm.md has the details. Neither torch nor vLLM is imported
before `install()` is called.
"""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

from tessera._patching import Patches, Target

# A child of vLLM's logger, which shows INFO; of other loggers vLLM shows warnings.
_logger = logging.getLogger("vllm.tessera")
_patches = Patches(_logger)


def install(*, wrapper: bool = False) -> list[str]:
    """Let Tessera serve vLLM's ops in this process; may be called any number of times.

    If the environment variable TESSERA_VLLM is 0, vLLM's own functions serve every call, as after
    `uninstall()`; if TESSERA_VLLM_EXPERTS is, its own functions compute experts. Whenever the call
    changes what is served, a line is logged.

    Args:
        wrapper: also replace the Python function `moe_align_block_size` around the op, in every
            module that has imported it. One kernel then does the op and applies the expert map.

    Returns:
        Full names of the functions that are replaced.

    Raises:
        ImportError: vLLM cannot be imported.
    """
    if _patches.switched_off("TESSERA_VLLM"):
        uninstall()
        _logger.info("TESSERA_VLLM is 0: vLLM is left as it is")
        return []
    with _patches.lock:
        version = str(importlib.import_module("vllm").__version__)
        custom_ops = importlib.import_module("vllm._custom_ops")
        from tessera.vllm import serving
        from tessera.vllm.experts import describe_kernel
        from tessera.vllm.generations import EXPERTS, KERNEL, generation_of
        from tessera.vllm.wrapper import moe_align_block_size

        before = _patches.served
        serves_experts = not _patches.switched_off("TESSERA_VLLM_EXPERTS")
        if not serves_experts:
            _patches.restore(EXPERTS)
        generation = generation_of(version)
        targets = [
            Target(custom_ops, name, parameters, serving.op(name, generation))
            for name, parameters in generation.ops.items()
        ]
        for (path, name), parameters in generation.functions.items():
            if name in EXPERTS and not serves_experts:
                continue
            if (module := _imported(path, name)) is not None:
                serve = serving.function(name, parameters, generation)
                targets.append(Target(module, name, parameters, serve))
        watched = []
        if serves_experts and generation.kernel is not None:
            path, name = generation.kernel
            if (module := _imported(path, name)) is not None:
                watched = [Target(module, name, KERNEL, describe_kernel)]
        if wrapper:
            module = importlib.import_module(
                "vllm.model_executor.layers.fused_moe.moe_align_block_size"
            )
            serve = functools.partial(moe_align_block_size, generation=generation)
            targets.append(Target(module, "moe_align_block_size", generation.wrapper, serve))
        _patches.replace(targets, watched)
        if _patches.names != before:
            _logger.info(
                "vLLM %s: Tessera serves %s; TESSERA_VLLM=0 turns it off",
                version,
                ", ".join(_patches.short_names) or "nothing",
            )
        _patches.active = True
        return _patches.names


def _imported(path: str, name: str) -> ModuleType | None:
    """A module of vLLM; None if it cannot be imported, which may raise anything."""
    try:
        return importlib.import_module(path)
    except Exception as error:
        _logger.warning("%s.%s is left alone: %s", path, name, error)
        return None


def uninstall() -> None:
    """Restore vLLM's own functions; does nothing if they were not replaced."""
    with _patches.lock:
        if names := _patches.restore():
            _logger.info("vLLM's own functions are back: %s", ", ".join(names))


def plugin() -> None:
    """Calls `install()`, in each process of vLLM. Never stops vLLM from starting."""
    try:
        install()
    except Exception:
        _logger.exception("vLLM runs without Tessera")
