"""How programs call `moe_align_block_size`: in two orders of arguments, and as a module.

vLLM's order is `(topk_ids, block_size, num_experts, expert_map, pad_sorted_ids, ...)`. Scripts also
write `(topk_ids, num_experts, block_size, topk)`: a fourth positional argument that is an integer,
or an argument named `topk`, marks that order. `topk` does nothing else.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from numbers import Integral
from types import ModuleType
from typing import Any

Align = Callable[..., Any]


class CallableModule(ModuleType):
    """A module that can be called like the function of its name.

    `from vllm.model_executor.layers.fused_moe import moe_align_block_size` gives vLLM's module of
    that name, but scripts that call it need the function: this is both.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function that has the module's own name."""
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _shown(value: object) -> str:
    plain = value is None or isinstance(value, (bool, int, float, str))
    return repr(value) if plain else type(value).__name__


def accept_both_forms(align: Align) -> Align:
    """A function that takes either order of arguments and calls `align`, which takes vLLM's.

    Raises, when called:
        TypeError: the arguments match neither order.
    """

    def in_script_order(topk_ids: Any, num_experts: Any, block_size: Any, topk: Any) -> Any:
        return align(topk_ids, block_size, num_experts)

    def neither(args: tuple[Any, ...], kwargs: dict[str, Any]) -> TypeError:
        forms = []
        for function in (align, in_script_order):
            parameters = inspect.signature(function).parameters.values()
            bare = [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
            forms.append(f"({', '.join(map(str, bare))})")
        got = [*map(_shown, args), *(f"{name}={_shown(kwargs[name])}" for name in kwargs)]
        return TypeError(
            f"moe_align_block_size: arguments: expected {forms[0]}, or {forms[1]} with an integer "
            f"topk, got ({', '.join(got)})"
        )

    @functools.wraps(align)
    def align_either(*args: Any, **kwargs: Any) -> Any:
        fourth = args[3] if len(args) > 3 else kwargs.get("topk")
        if "topk" in kwargs or _is_integer(fourth):
            call: Align = in_script_order
            known = _is_integer(fourth)
        else:
            call = align
            known = fourth is None or hasattr(fourth, "__dlpack__")
        if not known:
            raise neither(args, kwargs)
        try:
            return call(*args, **kwargs)
        except TypeError:
            try:
                inspect.signature(call).bind(*args, **kwargs)
            except TypeError:
                raise neither(args, kwargs) from None
            raise

    return align_either
