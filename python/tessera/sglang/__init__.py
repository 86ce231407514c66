"""Tessera in SGLang's place, in this process: `install()`, `uninstall()`, and SGLang's plugin.

The alignment op, the functions of `topk.py` and the one that computes the experts are replaced. In
SGLang's op the pairs that expert parallelism has filtered out, with id -1, form a group of their
own, the first, which `num_experts` includes. docs/sglang.md has the details. Neither torch nor
SGLang is imported before `install()` is called.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from contextlib import suppress
from typing import Any

from tessera._patching import Function, Patches, Target, by_name

_logger = logging.getLogger("tessera.sglang")
_patches = Patches(_logger)
# The line of the start, while it could not be logged.
_untold: list[str] = []

_OP = "moe_align_block_size"
# The first parameters of the op in every supported version, from SGLang 0.4.10 on.
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


def _targets() -> list[Target]:
    """The functions of this SGLang that are served."""
    targets = [*_alignment(), *_routers(), *_experts()]
    return [target._replace(serve=_telling(target.serve)) for target in targets]


def _telling(serve: Function) -> Function:
    """The function, which logs the line of the start at its first call if that was not possible.

    SGLang calls its plugins before it sets its logging up, so that their INFO is lost.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        if _untold:
            with suppress(IndexError):  # another thread has told it
                _logger.info(_untold.pop())
        return serve(*args, **kwargs)

    return call


def _experts() -> list[Target]:
    """The function of SGLang's Triton backend for experts that are not quantised."""
    from tessera.sglang import experts

    if _patches.switched_off("TESSERA_SGLANG_EXPERTS"):
        _patches.restore([experts.NAME])
        return []
    for path in experts.MODULES:
        try:
            module = importlib.import_module(path)
        except Exception as error:  # importing another package's module may raise anything
            if isinstance(error, ModuleNotFoundError) and path.startswith(str(error.name)):
                continue  # other versions have it
            _logger.warning("%s.%s is left alone: %s", path, experts.NAME, error)
            return []
        function = getattr(module, experts.NAME, None)
        names = [] if function is None else list(inspect.signature(function).parameters)
        parameters = experts.parameters_of(names)
        serve = by_name(experts.fused_experts_impl, parameters)
        return [Target(module, experts.NAME, parameters, serve)]
    _logger.warning("%s is left alone: no module of this SGLang has it", experts.NAME)
    return []


def _routers() -> list[Target]:
    """The functions of SGLang's `topk.py`."""
    from tessera.sglang import router

    try:
        module = importlib.import_module(router.MODULE)
    except Exception as error:  # importing another package's module may raise anything
        _logger.warning("%s is left alone: %s", router.MODULE, error)
        return []
    targets = []
    for name in router.FORMS:
        function = getattr(module, name, None)
        names = [] if function is None else list(inspect.signature(function).parameters)
        parameters, serve = router.serving(name, names)
        targets.append(Target(module, name, parameters, by_name(serve, parameters)))
    return targets


def _alignment() -> list[Target]:
    """The modules where this SGLang looks up its alignment op."""
    from tessera.sglang import ops

    try:  # 2026: a function that picks a backend, and the backend that is compiled at run time
        kernels = importlib.import_module("sglang.kernels.ops.moe")
    except ModuleNotFoundError:
        return [
            Target(
                importlib.import_module("sgl_kernel"), _OP, _PARAMETERS, ops.moe_align_block_size
            )
        ]
    targets = [Target(kernels, _OP, _PARAMETERS, ops.moe_align_block_size)]
    try:
        compiled = importlib.import_module("sglang.kernels.ops.moe.moe_align")
    except ImportError:  # a platform without that backend
        return targets
    return [*targets, Target(compiled, _OP, _COMPILED_PARAMETERS, ops.compiled_at_run_time)]


def _switched_off() -> bool:
    off = _patches.switched_off("TESSERA_SGLANG")
    if off:
        uninstall()
        _logger.info("TESSERA_SGLANG is 0: SGLang is left as it is")
    return off


def _start(before: list[str] | None) -> None:
    """Say what is served, if that is not what was served before."""
    if _patches.names != before:
        version = importlib.import_module("sglang").__version__
        served = ", ".join(_patches.short_names) or "nothing"
        line = f"SGLang {version}: Tessera serves {served}; TESSERA_SGLANG=0 turns it off"
        if _logger.isEnabledFor(logging.INFO):
            _logger.info(line)
        else:
            _untold[:] = [line]
    _patches.active = True


def install() -> list[str]:
    """Let Tessera serve SGLang's functions in this process; may be called any number of times.

    If the environment variable TESSERA_SGLANG is 0, SGLang's own functions serve every call, as
    after `uninstall()`; if TESSERA_SGLANG_EXPERTS is, its own function computes the experts.
    Whenever the call changes what is served, a line is logged.

    Returns:
        Full names of the functions that are replaced.

    Raises:
        ImportError: SGLang or its kernels cannot be imported.
    """
    if _switched_off():
        return []
    with _patches.lock:
        before = _patches.served
        _patches.replace(_targets())
        _start(before)
        return _patches.names


def uninstall() -> None:
    """Restore SGLang's own functions; does nothing if it was not replaced."""
    with _patches.lock:
        _untold.clear()
        if names := _patches.restore():
            _logger.info("SGLang's own functions are back: %s", ", ".join(names))


def plugin() -> None:
    """Registers hooks, which SGLang then installs; SGLang calls this in each of its processes.

    Never stops SGLang from starting.
    """
    try:
        if _switched_off():
            return
        hooks = importlib.import_module("sglang.srt.plugins.hook_registry")
        register = functools.partial(hooks.HookRegistry.register, hook_type=hooks.HookType.REPLACE)
        with _patches.lock:
            before = _patches.served
            for target in _targets():
                _patches.hook(target, register)
            _start(before)
    except Exception:
        _logger.exception("SGLang runs without Tessera")
