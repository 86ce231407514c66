"""Stand-in modules for vLLM, in a process that imports vLLM without having it."""

from __future__ import annotations

import random
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from tessera.vllm import layer, ops, router, rows
from tessera.vllm.call_forms import CallableModule
from tessera.vllm.functions import (
    batched_moe_align_block_size,
    cdiv,
    moe_align_block_size,
    round_up,
)


class _Capability(NamedTuple):
    """The compute capability of a GPU."""

    major: int
    minor: int

    def to_int(self) -> int:
        """As 90 for 9.0."""
        return 10 * self.major + self.minor


class _Platform:
    """The part of `vllm.platforms.current_platform` that tests of the functions use."""

    @staticmethod
    def is_cuda() -> bool:
        return torch.version.cuda is not None

    @staticmethod
    def is_cuda_alike() -> bool:
        return _Platform.is_cuda() or _Platform.is_rocm()

    @staticmethod
    def is_rocm() -> bool:
        return torch.version.hip is not None

    @staticmethod
    def fp8_dtype() -> torch.dtype:
        return torch.float8_e4m3fn

    @staticmethod
    def is_fp8_fnuz() -> bool:
        return False

    @staticmethod
    def get_device_capability(device_id: int = 0) -> _Capability | None:
        if not torch.cuda.is_available():
            return None
        return _Capability(*torch.cuda.get_device_capability(device_id))

    @staticmethod
    def has_device_capability(capability: tuple[int, int] | int, device_id: int = 0) -> bool:
        found = _Platform.get_device_capability(device_id)
        if found is None:
            return False
        return found.to_int() >= capability if isinstance(capability, int) else found >= capability

    @staticmethod
    def seed_everything(seed: int | None = None) -> None:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)


# What the package `fused_moe` has of its module of the same name.
_LAYER: dict[str, object] = {
    name: getattr(layer, name)
    for name in ("fused_experts", "fused_moe", "fused_topk", "grouped_topk")
}

# Every module that can be imported, and the names in it besides its submodules, which do not hide
# them: in vLLM, too, `fused_moe` in the package of this name is the function.
CONTENTS: dict[str, dict[str, object]] = {
    "vllm": {},
    "vllm._custom_ops": {
        "batched_moe_align_block_size": ops.batched_moe_align_block_size,
        # The value past the last block is 0, as in vLLM of mid-2025.
        "moe_align_block_size": partial(ops.moe_align_block_size, tail_expert=0),
        "moe_lora_align_block_size": ops.moe_lora_align_block_size,
        "moe_sum": rows.moe_sum,
        "topk_softmax": router.topk_softmax,
    },
    "vllm.model_executor": {},
    "vllm.model_executor.layers": {},
    "vllm.model_executor.layers.fused_moe": _LAYER,
    "vllm.model_executor.layers.fused_moe.fused_moe": {
        **_LAYER,
        "fused_experts_impl": layer.fused_experts,  # with the same first parameters
        "inplace_fused_experts": layer.inplace_fused_experts,
        "modular_triton_fused_moe": layer.modular_triton_fused_moe,
        "moe_align_block_size": moe_align_block_size,
        "outplace_fused_experts": layer.outplace_fused_experts,
    },
    "vllm.model_executor.layers.fused_moe.moe_align_block_size": {
        "batched_moe_align_block_size": batched_moe_align_block_size,
        "moe_align_block_size": moe_align_block_size,
    },
    "vllm.platforms": {"current_platform": _Platform()},
    "vllm.utils": {"cdiv": cdiv, "round_up": round_up},
}


def _not_provided(name: str) -> str:
    return (
        f"{name}: not in Tessera's stand-in for vLLM, which is not installed (pip install vllm); "
        "docs/vllm-script.md lists what the stand-in has"
    )


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(_not_provided(f"{self.__name__}.{name}"), name=name, obj=self)


class _CallableStandIn(_StandIn, CallableModule):
    """The module that contains the function of its name."""


class _Refusal:
    """A finder that explains why a vLLM module is not found."""

    @staticmethod
    def find_spec(fullname: str, path: object, target: object = None) -> None:
        if fullname.startswith("vllm."):
            # With the module's own name, `from vllm import x` would hide the message.
            raise ModuleNotFoundError(_not_provided(fullname), name="vllm")


def provide() -> None:
    """Let this process import vLLM's modules of the op from this stand-in."""
    for name, contents in CONTENTS.items():
        parent, _, own_name = name.rpartition(".")
        module = (_CallableStandIn if own_name == "moe_align_block_size" else _StandIn)(name)
        # All are packages, so that `from module import x` asks the finder for missing names.
        module.__spec__ = ModuleSpec(name, None, origin="Tessera's stand-in", is_package=True)
        module.__path__ = []
        module.__dict__.update(contents)
        sys.modules[name] = module
        if parent:
            vars(sys.modules[parent]).setdefault(own_name, module)
    finder: Any = _Refusal()
    sys.meta_path.insert(0, finder)
